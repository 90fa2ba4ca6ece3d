/*
 * Prototypes. Included by ../xenlight.h after layouts.h; in the proof after Xen's own headers, where each of these is
 * then a second declaration that the compiler compares with theirs.
 *
 * Unless a comment says otherwise:
 *  - int is 0 or a libxl_error (negative);
 *  - strings and arrays returned are malloc'ed and belong to the caller, who calls free(3);
 *  - memory is in KiB, as it is in libxl;
 *  - any thread may call, the context locks itself. A long call holds that lock, see xenlight's documentation;
 *  - "how": null runs the operation to its end in this call. Otherwise 0 means started: the end is reported once, perhaps
 *    before this call returns, and every pointer given except `how` must stay valid until then. Non-zero means never
 *    started and never reported.
 */

/* ---- contexts ---- */

/**
 * Opens the hypervisor and xenstore; `version` is `LIBXL_VERSION`, `flags` 0. The logger must outlive the context.
 */
int libxl_ctx_alloc(libxl_ctx **ctx_out, int version, unsigned flags, xentoollog_logger *logger);

/**
 * Closes a context (or null). Ends the process when an asynchronous operation is still under way.
 */
int libxl_ctx_free(libxl_ctx *ctx);

/**
 * Version, build and command line of the hypervisor, owned by the context; null on failure. The first call of a context
 * fills a cache without a lock: make it before other threads use the context.
 */
const libxl_version_info *libxl_get_version_info(libxl_ctx *ctx);

/**
 * A word for a `libxl_error`, static.
 */
const char *libxl_error_to_string(libxl_error error);

/* ---- domains: listing ---- */

/**
 * All domains, stub domains too. The distance between elements differs by release, see `XENLIGHT_DOMINFO_STRIDE_4_16`.
 */
libxl_dominfo *libxl_list_domain(libxl_ctx *ctx, int *count_out);

/**
 * Frees what `libxl_list_domain` returned.
 */
void libxl_dominfo_list_free(libxl_dominfo *list, int count);

/**
 * UUIDs and numbers of all domains but stub domains; the control domain is among them.
 */
libxl_vminfo *libxl_list_vm(libxl_ctx *ctx, int *count_out);

/**
 * Frees what `libxl_list_vm` returned.
 */
void libxl_vminfo_list_free(libxl_vminfo *list, int count);

/**
 * One domain, or `ERROR_DOMAIN_NOTFOUND`. `info_out` (a whole block, or null to test existence) needs dispose.
 */
int libxl_domain_info(libxl_ctx *ctx, libxl_dominfo *info_out, uint32_t domid);

/**
 * Makes a struct (in a whole block) ready for use.
 */
void libxl_dominfo_init(libxl_dominfo *info);

/**
 * Frees what a struct owns, not the struct.
 */
void libxl_dominfo_dispose(libxl_dominfo *info);

/**
 * The struct as JSON; null on failure.
 */
char *libxl_dominfo_to_json(libxl_ctx *ctx, libxl_dominfo *info);

/**
 * A domain's name; null when it has none (yet, or any more).
 */
char *libxl_domid_to_name(libxl_ctx *ctx, uint32_t domid);

/**
 * The number of the domain with exactly this name, else `ERROR_INVAL`.
 */
int libxl_name_to_domid(libxl_ctx *ctx, const char *name, uint32_t *domid_out);

/**
 * Like `libxl_name_to_domid`, but takes digits for a number without looking whether it exists, and "" for 0. Avoid.
 */
int libxl_domain_qualifier_to_domid(libxl_ctx *ctx, const char *name, uint32_t *domid_out);

/**
 * Whether this is a stub domain (1) or not (0), and if so whose; `target_out` may be null.
 */
int libxl_is_stubdom(libxl_ctx *ctx, uint32_t domid, uint32_t *target_out);

/**
 * The number of a guest's stub domain, 0 without one.
 */
int libxl_get_stubdom_id(libxl_ctx *ctx, int guest_domid);

/**
 * When the guest was started, seconds since 1970; all bits set when not known.
 */
uint32_t libxl_vm_get_start_time(libxl_ctx *ctx, uint32_t domid);

/* ---- domains: life ---- */

/**
 * Builds a guest, paused. libxl changes the config; the number is valid at the end of the operation.
 * After `ERROR_ABORTED` a half-made guest may exist. `console` (may be null): when its console can be connected to.
 */
int libxl_domain_create_new(libxl_ctx *ctx, libxl_domain_config *config, uint32_t *domid_out,
                            const libxl_asyncop_how *how, const libxl_asyncprogress_how *console);

/**
 * The same, with memory and state read from `restore_fd`. `send_back_fd` is -1 but for COLO; `params` must not be null.
 */
int libxl_domain_create_restore(libxl_ctx *ctx, libxl_domain_config *config, uint32_t *domid_out, int restore_fd,
                                int send_back_fd, const libxl_domain_restore_params *params,
                                const libxl_asyncop_how *how, const libxl_asyncprogress_how *console);

/**
 * Initial values for restoring; the stream version is then the old one, 1.
 */
void libxl_domain_restore_params_init(libxl_domain_restore_params *params);

/**
 * Frees what a struct owns, not the struct.
 */
void libxl_domain_restore_params_dispose(libxl_domain_restore_params *params);

/**
 * Restarts a guest in place, after it shut down with reason soft reset. `how` must be null: at completion libxl writes to the
 * stack frame of this call.
 */
int libxl_domain_soft_reset(libxl_ctx *ctx, libxl_domain_config *config, uint32_t domid, const libxl_asyncop_how *how,
                            const libxl_asyncprogress_how *console);

/**
 * Writes a guest's memory and state to `fd` and leaves it suspended; `flags` are `LIBXL_SUSPEND_...`. After a failure
 * call `libxl_domain_resume`: libxl doesn't.
 */
int libxl_domain_suspend(libxl_ctx *ctx, uint32_t domid, int fd, int flags, const libxl_asyncop_how *how);

/**
 * Suspends a guest and writes nothing.
 */
int libxl_domain_suspend_only(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how);

/**
 * Lets a suspended guest run on. `suspend_cancel` 1: the guest is told that its suspend was cancelled, as usual.
 * Harmless on a guest that isn't suspended.
 */
int libxl_domain_resume(libxl_ctx *ctx, uint32_t domid, int suspend_cancel, const libxl_asyncop_how *how);

/**
 * Asks the guest to power off. The end of the operation is the guest's acknowledgement, `ERROR_TIMEDOUT` after 60 s, or
 * `ERROR_NOPARAVIRT` when it can't be asked. The request is never withdrawn.
 */
int libxl_domain_shutdown(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how);

/**
 * Asks the guest to reboot, like `libxl_domain_shutdown`.
 */
int libxl_domain_reboot(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how);

/**
 * Takes a guest away, running or not.
 */
int libxl_domain_destroy(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how);

/**
 * Stops a guest's processors.
 */
int libxl_domain_pause(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how);

/**
 * Lets a guest's processors run.
 */
int libxl_domain_unpause(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how);

/**
 * Sends a hardware signal to a guest; `vcpuid` matters only to some.
 */
int libxl_send_trigger(libxl_ctx *ctx, uint32_t domid, libxl_trigger trigger, uint32_t vcpuid,
                       const libxl_asyncop_how *how);

/**
 * Sends a SysRq key to a Linux guest. Always 0, also when there is no such domain.
 */
int libxl_send_sysrq(libxl_ctx *ctx, uint32_t domid, char sysrq);

/**
 * Renames a guest; `old_name` must be its present name, or null.
 */
int libxl_domain_rename(libxl_ctx *ctx, uint32_t domid, const char *old_name, const char *new_name);

/**
 * Keeps a dead guest aside under its name plus a suffix, and a new UUID.
 */
int libxl_domain_preserve(libxl_ctx *ctx, uint32_t domid, libxl_domain_create_info *info, const char *name_suffix,
                          libxl_uuid new_uuid);

/**
 * Writes a guest's memory to a file. The dump is made inside this call, whatever `how` says, and can't be aborted.
 */
int libxl_domain_core_dump(libxl_ctx *ctx, uint32_t domid, const char *filename, const libxl_asyncop_how *how);

/**
 * Puts a medium (a disk with the drive's `vdev`) into a guest's drive, or takes it out.
 */
int libxl_cdrom_insert(libxl_ctx *ctx, uint32_t domid, libxl_device_disk *disk, const libxl_asyncop_how *how);

/* ---- configurations ---- */

/**
 * Makes a config (a zeroed block of `XENLIGHT_BLOCK_SIZE`) ready for use.
 */
void libxl_domain_config_init(libxl_domain_config *config);

/**
 * Frees what a config owns, not the config.
 */
void libxl_domain_config_dispose(libxl_domain_config *config);

/**
 * Makes `dst`, initialised, a deep copy of `src`.
 */
void libxl_domain_config_copy(libxl_ctx *ctx, libxl_domain_config *dst, const libxl_domain_config *src);

/**
 * A config as JSON; null on failure.
 */
char *libxl_domain_config_to_json(libxl_ctx *ctx, libxl_domain_config *config);

/**
 * Fills a freshly initialised config from JSON. Skips keys that it doesn't know and values of the wrong type.
 */
int libxl_domain_config_from_json(libxl_ctx *ctx, libxl_domain_config *config, const char *json);

/**
 * A guest's configuration as it is now, into an initialised config. `ERROR_JSON_CONFIG_EMPTY` when libxl stored none.
 */
int libxl_retrieve_domain_configuration(libxl_ctx *ctx, uint32_t domid, libxl_domain_config *config,
                                        const libxl_asyncop_how *how);

/**
 * Keeps a few bytes with a guest, under a short word as key, until it is gone; 0 bytes remove them.
 */
int libxl_userdata_store(libxl_ctx *ctx, uint32_t domid, const char *id, const uint8_t *data, int length);

/**
 * Reads them; absent is 0 with a null pointer and length 0.
 */
int libxl_userdata_retrieve(libxl_ctx *ctx, uint32_t domid, const char *id, uint8_t **data_out, int *length_out);

/**
 * Removes them.
 */
int libxl_userdata_unlink(libxl_ctx *ctx, uint32_t domid, const char *id);

/* ---- memory and host ---- */

/**
 * Memory that building this guest needs. Fills defaults into the config: give it a copy. `domid` is only for the log.
 */
int libxl_domain_need_memory(libxl_ctx *ctx, libxl_domain_config *config, uint32_t domid_for_logging,
                             uint64_t *need_kb_out);

/**
 * Free memory of the host.
 */
int libxl_get_free_memory(libxl_ctx *ctx, uint64_t *free_kb_out);

/**
 * Sets (or with `relative` changes) what a domain's balloon driver aims at. `enforce`: also the hard limit.
 */
int libxl_set_memory_target(libxl_ctx *ctx, uint32_t domid, int64_t target_kb, int relative, int enforce);

/**
 * What a domain's balloon driver aims at.
 */
int libxl_get_memory_target(libxl_ctx *ctx, uint32_t domid, uint64_t *target_kb_out);

/**
 * Blocks, without the context's lock, until a domain has come down to its target; counts down `seconds` only while it
 * makes no progress.
 */
int libxl_wait_for_memory_target(libxl_ctx *ctx, uint32_t domid, int seconds);

/**
 * Blocks, without the context's lock, until this much memory of the host is free.
 */
int libxl_wait_for_free_memory(libxl_ctx *ctx, uint32_t domid, uint64_t memory_kb, int seconds);

/**
 * The host's processors and memory, into an initialised struct in a whole block.
 */
int libxl_get_physinfo(libxl_ctx *ctx, libxl_physinfo *info_out);

/**
 * Makes a struct (in a whole block) ready for use.
 */
void libxl_physinfo_init(libxl_physinfo *info);

/**
 * Frees what a struct owns, not the struct.
 */
void libxl_physinfo_dispose(libxl_physinfo *info);

/**
 * Where each processor sits.
 */
libxl_cputopology *libxl_get_cpu_topology(libxl_ctx *ctx, int *count_out);

/**
 * Frees what `libxl_get_cpu_topology` returned.
 */
void libxl_cputopology_list_free(libxl_cputopology *list, int count);

/* ---- asynchronous operations and events ---- */

/**
 * Asks the operation that was started with an equal `how` to end early; null: some operation without one, of another
 * thread. `ERROR_NOTFOUND`: none (any more). `ERROR_ABORTED`: asked before. The operation reports its end in any case.
 */
int libxl_ao_abort(libxl_ctx *ctx, const libxl_asyncop_how *how);

/**
 * Whether an event is wanted: non-zero for yes.
 */
typedef int libxl_event_predicate(const libxl_event *event, void *user);

/**
 * Takes the first queued event that fits, or `ERROR_NOT_READY`. Runs nothing: progress comes from the event loop.
 * The mask has bit `1 << type` for each kind wanted; the predicate may be null.
 */
int libxl_event_check(libxl_ctx *ctx, libxl_event **event_out, uint64_t typemask, libxl_event_predicate *predicate,
                      void *predicate_user);

/**
 * The same, but runs libxl's event loop until one fits. Only an event that fits makes it return.
 */
int libxl_event_wait(libxl_ctx *ctx, libxl_event **event_out, uint64_t typemask, libxl_event_predicate *predicate,
                     void *predicate_user);

/**
 * Frees an event.
 */
void libxl_event_free(libxl_ctx *ctx, libxl_event *event);

/**
 * An event as JSON; null on failure.
 */
char *libxl_event_to_json(libxl_ctx *ctx, libxl_event *event);

/**
 * Installs callbacks (null: none). `hooks` isn't copied. Only while nothing else uses the context.
 */
void libxl_event_register_callbacks(libxl_ctx *ctx, const libxl_event_hooks *hooks, void *user);

/**
 * Reports shutdown and death of a domain from now on. What happened before may not be reported: look for yourself after
 * this call. After a suspend was reported the generator is spent.
 */
int libxl_evenable_domain_death(libxl_ctx *ctx, uint32_t domid, libxl_ev_user user,
                                libxl_evgen_domain_death **generator_out);

/**
 * Ends that. Events made before may still come.
 */
void libxl_evdisable_domain_death(libxl_ctx *ctx, libxl_evgen_domain_death *generator);

/**
 * Reports ejects of a guest's drive.
 */
int libxl_evenable_disk_eject(libxl_ctx *ctx, uint32_t domid, const char *vdev, libxl_ev_user user,
                              libxl_evgen_disk_eject **generator_out);

/**
 * Ends that.
 */
void libxl_evdisable_disk_eject(libxl_ctx *ctx, libxl_evgen_disk_eject *generator);

/* ---- the application's event loop ---- */

/**
 * Gives libxl an event loop by callbacks. Once in a context's life, before it waits for anything; not copied.
 */
void libxl_osevent_register_hooks(libxl_ctx *ctx, const libxl_osevent_hooks *hooks, void *user);

/**
 * A file descriptor registered through the hooks is ready. Not from inside a hook.
 */
void libxl_osevent_occurred_fd(libxl_ctx *ctx, void *for_libxl, int fd, short events, short revents);

/**
 * A time registered through the hooks has come. Not from inside a hook.
 */
void libxl_osevent_occurred_timeout(libxl_ctx *ctx, void *for_libxl);

/**
 * What to give to poll(2): fills in up to `*nfds_io` descriptors and sets the number, and lowers `*timeout_upd`
 * (milliseconds, negative none). `ERROR_BUFFERFULL`: more room is needed. One thread per context.
 */
int libxl_osevent_beforepoll(libxl_ctx *ctx, int *nfds_io, struct pollfd *fds, int *timeout_upd, struct timeval now);

/**
 * What came out of poll(2): does the work and queues the events.
 */
void libxl_osevent_afterpoll(libxl_ctx *ctx, int nfds, const struct pollfd *fds, struct timeval now);

/* ---- child processes ---- */

/**
 * Says who handles SIGCHLD. Before libxl has any child; `hooks` (null: the default) isn't copied.
 */
void libxl_childproc_setmode(libxl_ctx *ctx, const libxl_childproc_hooks *hooks, void *user);

/**
 * Owner mainloop: this child has ended. `ERROR_UNKNOWN_CHILD` when it isn't this context's. Not in a signal handler.
 */
int libxl_childproc_reaped(libxl_ctx *ctx, pid_t pid, int status);

/**
 * Owner mainloop: some child has ended, libxl looks after its own. Not in a signal handler.
 */
void libxl_childproc_sigchld_occurred(libxl_ctx *ctx);

/**
 * In a forked child that runs on without exec: closes what the contexts of this process hold, which are dead after that.
 */
void libxl_postfork_child_noexec(libxl_ctx *ctx);

/* ---- the rest ---- */

/**
 * Makes room for a log file in Xen's log directory (old ones are renamed) and returns its path.
 */
int libxl_create_logfile(libxl_ctx *ctx, const char *name, char **full_name_out);

/**
 * Reads a regular file. Returns an errno value.
 */
int libxl_read_file_contents(libxl_ctx *ctx, const char *filename, void **data_out, int *length_out);

/**
 * A random UUID.
 */
void libxl_uuid_generate(libxl_uuid *uuid_out);

/**
 * Reads a UUID from text.
 */
int libxl_uuid_from_string(libxl_uuid *uuid_out, const char *text);

/* ---- libxenctrl, the library below libxl: found through libxl, which is linked to it ---- */

/**
 * Opens the hypervisor's interface. Null on failure. `logger` null: standard error. `flags` 0.
 */
xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *builder_logger, unsigned flags);

/**
 * Closes the hypervisor's interface (or null).
 */
int xc_interface_close(xc_interface *xch);

/**
 * The text of an errno value, in a buffer of the calling thread.
 */
const char *xc_strerror(xc_interface *xch, int errcode);
