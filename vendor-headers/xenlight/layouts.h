/* The structs that are read or written by layout. Included by ../xenlight.h after types.h. */

/* ---- xentoollog ---- */

struct XENLIGHT_LAYOUT(xentoollog_logger) {
    /**
     * One message. `errnoval` -1: no errno; `context` (like "libxl", "xc") may be null; the text has no newline.
     * Called on any thread, and in forked children of a multithreaded parent: no locks, no Rust, only write(2) there.
     */
    void (*vmessage)(struct xentoollog_logger *logger, xentoollog_level level, int errnoval, const char *context,
                     const char *format, va_list al);
    /** How far a long step is. May be null. Starts with `done` 0. */
    void (*progress)(struct xentoollog_logger *logger, const char *context, const char *doing_what, int percent,
                     unsigned long done, unsigned long total);
    /** Frees the logger. Must not be null, though `libxl_ctx_free` doesn't call it. */
    void (*destroy)(struct xentoollog_logger *logger);
};

/* ---- small values ---- */

struct XENLIGHT_LAYOUT(libxl_uuid) {
    /** The bytes in the order in which they are written. */
    unsigned char uuid[16];
};

struct XENLIGHT_LAYOUT(libxl_defbool) {
    /** 0 default, below 0 false, above 0 true. */
    int val;
};

/* ---- events and asynchronous operations ---- */

struct XENLIGHT_LAYOUT(libxl_ev_link) {
    /** libxl's. */
    struct libxl_event *tqe_next;
    /** libxl's. */
    struct libxl_event **tqe_prev;
};

/* Always allocated and freed by libxl (libxl_event_free): ours ends where the releases begin to differ. */
struct XENLIGHT_PREFIX(libxl_event) {
    /** libxl's. */
    libxl_ev_link link;
    /** The domain concerned; 0 for the end of a create, restore or soft reset. */
    libxl_domid domid;
    /** Its UUID. */
    libxl_uuid domuuid;
    /** The value that the caller gave when it asked for the event. */
    libxl_ev_user for_user;
    /** Which part of `u` is valid. */
    libxl_event_type type;
    /** What is special to the kind of event. */
    union {
        /** Of `LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN`. */
        struct {
            /** A `libxl_shutdown_reason` in one byte. */
            uint8_t shutdown_reason;
        } domain_shutdown;
        /** Of `LIBXL_EVENT_TYPE_DISK_EJECT`. */
        struct {
            /** The guest's name of the drive; the event's. */
            char *vdev;
            /** Start of the `libxl_device_disk` (the drive, now empty) to give to `libxl_cdrom_insert`. */
            xenlight_rest disk;
        } disk_eject;
        /** Of `LIBXL_EVENT_TYPE_OPERATION_COMPLETE`. */
        struct {
            /** 0 or a `libxl_error`. */
            int rc;
        } operation_complete;
    } u;
};

struct XENLIGHT_LAYOUT(libxl_asyncop_how) {
    /**
     * Called exactly once, when the operation ends, if and only if the starting call returned 0: perhaps before that
     * call returns, on any thread that is inside libxl, without libxl's lock. Null: an event tells the end.
     */
    void (*callback)(libxl_ctx *ctx, int rc, void *for_callback);
    /** Whose end it is; together with `callback` also the key of `libxl_ao_abort`. */
    union {
        /** The event's `for_user`, without a callback. */
        libxl_ev_user for_event;
        /** The callback's argument. */
        void *for_callback;
    } u;
};

struct XENLIGHT_LAYOUT(libxl_asyncprogress_how) {
    /** Gets the event, which it must free, under the rules of `libxl_asyncop_how`. Null: the event is queued. */
    void (*callback)(libxl_ctx *ctx, libxl_event *event, void *for_callback);
    /** The event's `for_user`, in both cases. */
    libxl_ev_user for_event;
    /** The callback's argument. */
    void *for_callback;
};

struct XENLIGHT_LAYOUT(libxl_event_hooks) {
    /** Kinds of events (`1 << type`) that go to `event_occurs` instead of the queue. */
    uint64_t event_occurs_mask;
    /** Gets the event, which it must free with `libxl_event_free`. May call libxl. May be null when the mask is 0. */
    void (*event_occurs)(void *user, libxl_event *event);
    /**
     * Events of a kind (0: of all kinds) may be lost from now on. Must not call libxl.
     * Always install it: without it libxl ends the process instead.
     */
    void (*disaster)(void *user, libxl_event_type type, const char *msg, int errnoval);
};

struct XENLIGHT_LAYOUT(libxl_osevent_hooks) {
    /** Watch a file descriptor; 0, or an error that libxl passes on. */
    int (*fd_register)(void *user, int fd, void **for_app_registration_out, short events, void *for_libxl);
    /** Watch it for other things. */
    int (*fd_modify)(void *user, int fd, void **for_app_registration_update, short events);
    /** Stop watching it. */
    void (*fd_deregister)(void *user, int fd, void *for_app_registration);
    /** Call `libxl_osevent_occurred_timeout` at this time of day. */
    int (*timeout_register)(void *user, void **for_app_registration_out, struct timeval abs, void *for_libxl);
    /** Call it now: the time is always 0. */
    int (*timeout_modify)(void *user, void **for_app_registration_update, struct timeval abs);
    /** Never called. */
    void (*timeout_deregister)(void *user, void *for_app_registration);
};

struct XENLIGHT_LAYOUT(libxl_childproc_hooks) {
    /** Who handles SIGCHLD. */
    libxl_sigchld_owner chldowner;
    /** Called instead of fork(2), with libxl's lock held; must not call libxl. May be null. */
    pid_t (*fork_replacement)(void *user);
    /** A child that isn't libxl's has ended: 0, or `ERROR_UNKNOWN_CHILD`. May be null. */
    int (*reaped_callback)(pid_t pid, int status, void *user);
};

/* ---- parameters and answers ---- */

struct XENLIGHT_LAYOUT(libxl_domain_restore_params) {
    /** A `libxl_checkpointed_stream`; 0 for saved images and migrations. */
    int checkpointed_stream;
    /** Version of the stream: 2 since Xen 4.6. `libxl_domain_restore_params_init` sets the one before. */
    uint32_t stream_version;
    /** Only for COLO. */
    char *colo_proxy_script;
    /** Only for COLO. */
    libxl_defbool userspace_colo_proxy;
};

/*
 * The first 108 bytes; what follows differs by release. For a single one give libxl a whole block (XENLIGHT_BLOCK_SIZE);
 * in the array of libxl_list_domain the elements are XENLIGHT_DOMINFO_STRIDE_... apart.
 */
struct XENLIGHT_PREFIX(libxl_dominfo) {
    /** Identity. */
    libxl_uuid uuid;
    /** Number. */
    libxl_domid domid;
    /** Security label, as a number. */
    uint32_t ssidref;
    /** Security label, as text, or null. The struct's. */
    char *ssid_label;
    /** On a processor right now. */
    bool running;
    /** Waiting for an interrupt: idle. */
    bool blocked;
    /** Paused by the toolstack. */
    bool paused;
    /** Has shut down: `shutdown_reason` is valid. */
    bool shutdown;
    /** Being taken apart. */
    bool dying;
    /** Must not be stopped. */
    bool never_stop;
    /** Why it has shut down. */
    libxl_shutdown_reason shutdown_reason;
    /** Memory claimed and not yet allocated, KiB. */
    uint64_t outstanding_memkb;
    /** Memory in use, KiB. */
    uint64_t current_memkb;
    /** Memory shared with others, KiB. */
    uint64_t shared_memkb;
    /** Memory paged out, KiB. */
    uint64_t paged_memkb;
    /** Upper limit, KiB. */
    uint64_t max_memkb;
    /** Processor time used, nanoseconds. */
    uint64_t cpu_time;
    /** Highest number of a virtual processor. */
    uint32_t vcpu_max_id;
    /** Virtual processors online. */
    uint32_t vcpu_online;
    /** Number of the CPU pool. */
    uint32_t cpupool;
};

struct XENLIGHT_LAYOUT(libxl_vminfo) {
    /** Identity. */
    libxl_uuid uuid;
    /** Number. */
    libxl_domid domid;
};

/* The leading fields. Give libxl a whole block (XENLIGHT_BLOCK_SIZE). Pages have 4 KiB. */
struct XENLIGHT_PREFIX(libxl_physinfo) {
    /** Threads of each core. */
    uint32_t threads_per_core;
    /** Cores of each socket. */
    uint32_t cores_per_socket;
    /** Highest number of a processor. */
    uint32_t max_cpu_id;
    /** Processors online. */
    uint32_t nr_cpus;
    /** Clock, kHz. */
    uint32_t cpu_khz;
    /** Memory of the host, pages. */
    uint64_t total_pages;
    /** Free, pages. */
    uint64_t free_pages;
    /** Freed and not yet wiped, pages. */
    uint64_t scrub_pages;
    /** Claimed and not yet allocated, pages. */
    uint64_t outstanding_pages;
    /** Saved by sharing, pages. */
    uint64_t sharing_freed_pages;
    /** Frames that are shared. */
    uint64_t sharing_used_frames;
    /** Highest possible frame number. */
    uint64_t max_possible_mfn;
    /** NUMA nodes. */
    uint32_t nr_nodes;
};

/* From libxl_get_version_info, which owns it and its strings for the life of the context. */
struct XENLIGHT_LAYOUT(libxl_version_info) {
    /** 4 of "4.17.1". */
    int xen_version_major;
    /** 17 of "4.17.1". */
    int xen_version_minor;
    /** ".1" of "4.17.1". */
    char *xen_version_extra;
    /** Which compiler built it. */
    char *compiler;
    /** Who built it. */
    char *compile_by;
    /** Where it was built. */
    char *compile_domain;
    /** When it was built. */
    char *compile_date;
    /** Kinds of guests that it can run, like "xen-3.0-x86_64 hvm-3.0-x86_64". */
    char *capabilities;
    /** The source's revision. */
    char *changeset;
    /** Start of the hypervisor's address range. */
    uint64_t virt_start;
    /** Size of a page, bytes. */
    int pagesize;
    /** The hypervisor's command line. */
    char *commandline;
    /** Its build id. */
    char *build_id;
};

struct XENLIGHT_LAYOUT(libxl_cputopology) {
    /** Core within the socket. */
    uint32_t core;
    /** Socket. */
    uint32_t socket;
    /** NUMA node. */
    uint32_t node;
};
