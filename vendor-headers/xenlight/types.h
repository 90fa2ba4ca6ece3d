/* Names of types, enumerations and our own constants. Included by ../xenlight.h; needs the headers named there. */

/* ---- our own: sizes and offsets that differ by release, and what the proof must know ---- */

/**
 * Stands for "from here on the content differs by release": only the address of such a field may be used.
 */
typedef uint64_t xenlight_rest;

enum {
    /** Room in bytes that holds any libxl struct of any supported release (the largest has 1400), aligned to 16. */
    XENLIGHT_BLOCK_SIZE = 8192,
    /** Alignment in bytes of such a block. */
    XENLIGHT_BLOCK_ALIGN = 16,
    /** Distance in bytes between two `libxl_dominfo` in an array from `libxl_list_domain`, Xen 4.14 and 4.15. */
    XENLIGHT_DOMINFO_STRIDE_4_14 = 112,
    /** The same distance from Xen 4.16 on. */
    XENLIGHT_DOMINFO_STRIDE_4_16 = 120,
    /** Where `libxl_dominfo` keeps the guest's `libxl_domain_type`, in bytes from its start, Xen 4.14 and 4.15. */
    XENLIGHT_DOMINFO_TYPE_OFFSET_4_14 = 108,
    /** The same offset from Xen 4.16 on. */
    XENLIGHT_DOMINFO_TYPE_OFFSET_4_16 = 112,
};

/* ---- xentoollog ---- */

/**
 * How grave a log message is, from `XTL_DEBUG` (least) to `XTL_CRITICAL`.
 */
typedef enum xentoollog_level {
    /** No level; messages never have it. */
    XTL_NONE = 0,
    /** For developers of Xen. */
    XTL_DEBUG = 1,
    /** Much detail. */
    XTL_VERBOSE = 2,
    /** Some detail. */
    XTL_DETAIL = 3,
    /** Progress of a long step; the least level that `xl` shows. */
    XTL_PROGRESS = 4,
    /** Information. */
    XTL_INFO = 5,
    /** Unusual, but no problem. */
    XTL_NOTICE = 6,
    /** Something may be wrong. */
    XTL_WARN = 7,
    /** An operation failed. */
    XTL_ERROR = 8,
    /** The library itself can't go on. */
    XTL_CRITICAL = 9,
} xentoollog_level;

/**
 * Where libxl sends its log: three callbacks, given to `libxl_ctx_alloc`. Must outlive the context.
 */
typedef struct xentoollog_logger xentoollog_logger;

/**
 * A connection to the hypervisor, as libxenctrl has it.
 */
typedef struct xc_interface_core xc_interface;

/* ---- libxl: handles and opaque types ---- */

/**
 * A context: one connection to the hypervisor and to xenstore, with its event machinery. Threads may share it.
 */
typedef struct libxl__ctx libxl_ctx;

/**
 * Everything that defines a guest. Its layout changes with each release, so it is opaque here: take a zeroed block of
 * `XENLIGHT_BLOCK_SIZE` bytes, call `libxl_domain_config_init`, and move the content as JSON.
 */
typedef struct libxl_domain_config libxl_domain_config;

/**
 * The part of a `libxl_domain_config` that names the guest; it starts at the config's own address.
 */
typedef struct libxl_domain_create_info libxl_domain_create_info;

/**
 * A disk. Opaque: we only pass on the address of the one inside a disk eject event.
 */
typedef struct libxl_device_disk libxl_device_disk;

/**
 * A running generator of domain death events, for `libxl_evdisable_domain_death`.
 */
typedef struct libxl__evgen_domain_death libxl_evgen_domain_death;

/**
 * A running generator of disk eject events, for `libxl_evdisable_disk_eject`.
 */
typedef struct libxl__evgen_disk_eject libxl_evgen_disk_eject;

/* ---- libxl: structs of layouts.h ---- */

/** A 16-byte UUID, most significant byte first. */
typedef struct libxl_uuid libxl_uuid;
/** A boolean with a third state "default": 0 default, below 0 false, above 0 true. */
typedef struct libxl_defbool libxl_defbool;
/** libxl's own links of an event in its queue. Not ours to touch. */
typedef struct libxl_ev_link libxl_ev_link;
/** Something that happened, from `libxl_event_wait` and its like. */
typedef struct libxl_event libxl_event;
/** How an asynchronous operation reports its end. */
typedef struct libxl_asyncop_how libxl_asyncop_how;
/** How an asynchronous operation reports intermediate steps. */
typedef struct libxl_asyncprogress_how libxl_asyncprogress_how;
/** Who handles SIGCHLD, and how libxl forks. */
typedef struct libxl_childproc_hooks libxl_childproc_hooks;
/** Callbacks for events and for the loss of events. */
typedef struct libxl_event_hooks libxl_event_hooks;
/** Callbacks by which libxl uses the application's event loop. */
typedef struct libxl_osevent_hooks libxl_osevent_hooks;
/** How to read the stream that `libxl_domain_create_restore` gets. */
typedef struct libxl_domain_restore_params libxl_domain_restore_params;
/** A domain as the hypervisor sees it. */
typedef struct libxl_dominfo libxl_dominfo;
/** UUID and number of a domain. */
typedef struct libxl_vminfo libxl_vminfo;
/** The host: processors, memory. */
typedef struct libxl_physinfo libxl_physinfo;
/** The hypervisor: version, build, command line. */
typedef struct libxl_version_info libxl_version_info;
/** Where one processor sits. */
typedef struct libxl_cputopology libxl_cputopology;

/* ---- libxl: numbers ---- */

/** Number of a domain; 0 is the host's control domain. Reused by the hypervisor, so identify guests by UUID. */
typedef uint32_t libxl_domid;
/** A value of the caller that comes back in events. */
typedef uint64_t libxl_ev_user;

enum {
    /** The version that `libxl_ctx_alloc` wants to be told. */
    LIBXL_VERSION = 0,
};

enum {
    /** No domain. */
    INVALID_DOMID = ~0u,
    /** In a new guest's configuration: choose the number at random. */
    RANDOM_DOMID = ~0u - 1,
};

enum {
    /** `libxl_domain_suspend`: extra checks of the stream, for debugging Xen. */
    LIBXL_SUSPEND_DEBUG = 1,
    /** `libxl_domain_suspend`: the guest keeps running while most of its memory is copied. */
    LIBXL_SUSPEND_LIVE = 2,
};

/**
 * What libxl's functions return when they fail; 0 is success. Some also return a positive errno value, each says so.
 */
typedef enum libxl_error {
    /** Some error. */
    ERROR_NONSPECIFIC = -1,
    /** Caller and library are of different versions. */
    ERROR_VERSION = -2,
    /** Failed; the log says why. */
    ERROR_FAIL = -3,
    /** Not implemented. */
    ERROR_NI = -4,
    /** Out of memory. */
    ERROR_NOMEM = -5,
    /** An argument or the configuration is not valid. */
    ERROR_INVAL = -6,
    /** Failed, and undoing it failed too: the guest may be in an odd state. */
    ERROR_BADFAIL = -7,
    /** The guest did not react in time to the request to suspend. */
    ERROR_GUEST_TIMEDOUT = -8,
    /** Something other than the guest took too long, or a shutdown request went unanswered. */
    ERROR_TIMEDOUT = -9,
    /** The guest has no PV drivers, which this operation needs. */
    ERROR_NOPARAVIRT = -10,
    /** No event is waiting. */
    ERROR_NOT_READY = -11,
    /** The application's event loop refused a registration. */
    ERROR_OSEVENT_REG_FAIL = -12,
    /** The space given by the caller is too small. */
    ERROR_BUFFERFULL = -13,
    /** This process is no child of libxl's. */
    ERROR_UNKNOWN_CHILD = -14,
    /** A lock could not be taken, often because the domain is gone. */
    ERROR_LOCK_FAIL = -15,
    /** libxl has no stored configuration of this domain. */
    ERROR_JSON_CONFIG_EMPTY = -16,
    /** The guest has such a device already. */
    ERROR_DEVICE_EXISTS = -17,
    /** Checkpointing: device kinds don't match. */
    ERROR_CHECKPOINT_DEVOPS_DOES_NOT_MATCH = -18,
    /** Checkpointing: a device can't be checkpointed. */
    ERROR_CHECKPOINT_DEVICE_NOT_SUPPORTED = -19,
    /** The virtual NUMA configuration is not valid. */
    ERROR_VNUMA_CONFIG_INVALID = -20,
    /** There is no such domain. */
    ERROR_DOMAIN_NOTFOUND = -21,
    /** The operation was ended by `libxl_ao_abort`. */
    ERROR_ABORTED = -22,
    /** Not found, for instance no operation to abort. */
    ERROR_NOTFOUND = -23,
    /** The domain was destroyed meanwhile. */
    ERROR_DOMAIN_DESTROYED = -24,
    /** This Xen no longer has the feature asked for. */
    ERROR_FEATURE_REMOVED = -25,
    /** QEMU's monitor: its answer makes no sense. */
    ERROR_PROTOCOL_ERROR_QMP = -26,
    /** QEMU's monitor: an error that libxl doesn't know. */
    ERROR_UNKNOWN_QMP_ERROR = -27,
    /** QEMU's monitor: a general error. */
    ERROR_QMP_GENERIC_ERROR = -28,
    /** QEMU's monitor: no such command. */
    ERROR_QMP_COMMAND_NOT_FOUND = -29,
    /** QEMU's monitor: the device is not active. */
    ERROR_QMP_DEVICE_NOT_ACTIVE = -30,
    /** QEMU's monitor: no such device. */
    ERROR_QMP_DEVICE_NOT_FOUND = -31,
    /** QEMU behaves differently from what libxl expects. */
    ERROR_QEMU_API = -32,
} libxl_error;

/**
 * How a guest is virtualized.
 */
typedef enum libxl_domain_type {
    /** Not known, or not set. */
    LIBXL_DOMAIN_TYPE_INVALID = -1,
    /** Fully virtualized, with a device model. */
    LIBXL_DOMAIN_TYPE_HVM = 1,
    /** Paravirtualized. */
    LIBXL_DOMAIN_TYPE_PV = 2,
    /** Paravirtualized devices on hardware virtualization. */
    LIBXL_DOMAIN_TYPE_PVH = 3,
} libxl_domain_type;

/**
 * Why a guest shut down.
 */
typedef enum libxl_shutdown_reason {
    /** Not shut down, or not known. */
    LIBXL_SHUTDOWN_REASON_UNKNOWN = -1,
    /** It powered off. */
    LIBXL_SHUTDOWN_REASON_POWEROFF = 0,
    /** It wants to be started again. */
    LIBXL_SHUTDOWN_REASON_REBOOT = 1,
    /** It suspended, as part of a save or migration. */
    LIBXL_SHUTDOWN_REASON_SUSPEND = 2,
    /** It crashed. */
    LIBXL_SHUTDOWN_REASON_CRASH = 3,
    /** Its watchdog expired. */
    LIBXL_SHUTDOWN_REASON_WATCHDOG = 4,
    /** It wants to be restarted in place, memory kept. */
    LIBXL_SHUTDOWN_REASON_SOFT_RESET = 5,
} libxl_shutdown_reason;

/**
 * What a guest's configuration says is to be done after it has shut down.
 */
typedef enum libxl_action_on_shutdown {
    /** Remove it. */
    LIBXL_ACTION_ON_SHUTDOWN_DESTROY = 1,
    /** Start it again. */
    LIBXL_ACTION_ON_SHUTDOWN_RESTART = 2,
    /** Keep the remains under another name and start it again. */
    LIBXL_ACTION_ON_SHUTDOWN_RESTART_RENAME = 3,
    /** Keep the remains. */
    LIBXL_ACTION_ON_SHUTDOWN_PRESERVE = 4,
    /** Dump its memory to a file, then remove it. */
    LIBXL_ACTION_ON_SHUTDOWN_COREDUMP_DESTROY = 5,
    /** Dump its memory to a file, then start it again. */
    LIBXL_ACTION_ON_SHUTDOWN_COREDUMP_RESTART = 6,
    /** Restart it in place. */
    LIBXL_ACTION_ON_SHUTDOWN_SOFT_RESET = 7,
} libxl_action_on_shutdown;

/**
 * Hardware signals that can be sent to a guest.
 */
typedef enum libxl_trigger {
    /** None. */
    LIBXL_TRIGGER_UNKNOWN = 0,
    /** The ACPI power button. */
    LIBXL_TRIGGER_POWER = 1,
    /** The ACPI sleep button. */
    LIBXL_TRIGGER_SLEEP = 2,
    /** A non-maskable interrupt. */
    LIBXL_TRIGGER_NMI = 3,
    /** The processor's INIT signal. */
    LIBXL_TRIGGER_INIT = 4,
    /** Reset. */
    LIBXL_TRIGGER_RESET = 5,
    /** Wake up from ACPI sleep state S3. */
    LIBXL_TRIGGER_S3RESUME = 6,
} libxl_trigger;

/**
 * Kinds of events. The mask given to `libxl_event_wait` has bit `1 << type` for each kind wanted.
 */
typedef enum libxl_event_type {
    /** A guest has shut down, for whatever reason; it still exists. */
    LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN = 1,
    /** A guest is gone. */
    LIBXL_EVENT_TYPE_DOMAIN_DEATH = 2,
    /** A guest has ejected a removable disk. */
    LIBXL_EVENT_TYPE_DISK_EJECT = 3,
    /** An asynchronous operation without a callback has ended. */
    LIBXL_EVENT_TYPE_OPERATION_COMPLETE = 4,
    /** The console of a guest being created can be connected to. */
    LIBXL_EVENT_TYPE_DOMAIN_CREATE_CONSOLE_AVAILABLE = 5,
} libxl_event_type;

/**
 * Kinds of checkpointed migration streams, for `libxl_domain_restore_params`.
 */
typedef enum libxl_checkpointed_stream {
    /** An ordinary stream. */
    LIBXL_CHECKPOINTED_STREAM_NONE = 0,
    /** Remus. */
    LIBXL_CHECKPOINTED_STREAM_REMUS = 1,
    /** COLO. */
    LIBXL_CHECKPOINTED_STREAM_COLO = 2,
} libxl_checkpointed_stream;

/**
 * Who handles SIGCHLD in a process that uses libxl. See `libxl_childproc_setmode`.
 */
typedef enum libxl_sigchld_owner {
    /** libxl while it has children, and it reaps every child of the process. */
    libxl_sigchld_owner_libxl = 0,
    /** The application, which tells libxl. */
    libxl_sigchld_owner_mainloop = 1,
    /** libxl all the time, and it reaps every child of the process. */
    libxl_sigchld_owner_libxl_always = 2,
    /** libxl all the time, but it reaps only its own children. The only mode that several contexts can share. */
    libxl_sigchld_owner_libxl_always_selective_reap = 3,
} libxl_sigchld_owner;
