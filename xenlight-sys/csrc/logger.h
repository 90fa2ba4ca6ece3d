/*
 * The logger that Rust can't write: xentoollog hands over a va_list, and calls the logger in forked children too.
 *
 * libxl forks a process that may have many threads, and some of those children go on to run libxl's code, which logs.
 * In such a child another thread may have held any lock at the time of the fork, the allocator of Rust's or a mutex of a
 * sink, and nobody will ever release it. So there this logger calls nothing but getpid, vsnprintf and write: it formats
 * into its stack and writes one record to a pipe, whose other end the parent reads. In the parent it calls the sink.
 */
#ifndef XENLIGHT_SYS_LOGGER_H
#define XENLIGHT_SYS_LOGGER_H

#include "xenlight.h"

enum {
    /** First field of every record: "XLcr" read as bytes on a little-endian machine. */
    XENLIGHT_CHILD_MAGIC = 0x72634c58,
    /** Largest record in bytes, header included. At most PIPE_BUF, so that records don't mix. */
    XENLIGHT_CHILD_RECORD_MAX = 2048,
    /** Bit of a record's flags: the text was longer. */
    XENLIGHT_CHILD_TRUNCATED = 1,
};

/**
 * What a forked child writes to `child_fd`: this header, in the machine's byte order, then `context_len` bytes of
 * context, then `text_len` bytes of text. No padding, no terminators. One record is one write(2).
 */
struct xenlight_child_record {
    /** `XENLIGHT_CHILD_MAGIC`. */
    uint32_t magic;
    /** Who writes. */
    int32_t pid;
    /** A `xentoollog_level`. */
    int32_t level;
    /** An errno value, or -1. */
    int32_t errnoval;
    /** `XENLIGHT_CHILD_TRUNCATED`, or 0. */
    uint16_t flags;
    /** Length of the context; 0xffff: there was none (null). */
    uint16_t context_len;
    /** Length of the text. */
    uint16_t text_len;
    /** 0. */
    uint16_t reserved;
};

/**
 * Gets a message: text without a newline, errno value or -1, context or null. The strings are valid during the call.
 * Called on any thread that is inside libxl, several at once.
 */
typedef void xenlight_message_fn(void *data, xentoollog_level level, int errnoval, const char *context,
                                 const char *text);

/**
 * Gets the progress of a long step, in whatever unit the step has. Called like `xenlight_message_fn`.
 */
typedef void xenlight_progress_fn(void *data, const char *context, const char *doing_what, int percent,
                                  unsigned long done, unsigned long total);

/**
 * A logger for `libxl_ctx_alloc`. Fill it with `xenlight_logger_init`; keep it, at its place, until the context is freed.
 */
struct xenlight_logger {
    /** What libxl sees: pass the address of this. */
    xentoollog_logger vtable;
    /** Gets messages, in the owner only. */
    xenlight_message_fn *message;
    /** Gets progress, in the owner only; may be null. */
    xenlight_progress_fn *progress;
    /** First argument of both. */
    void *data;
    /** Messages below this are dropped before they are formatted. */
    xentoollog_level min_level;
    /** The process in which the sinks may be called. */
    pid_t owner;
    /** Where forked children write their records, -1: nowhere. */
    int child_fd;
};

/**
 * Fills a logger; the calling process becomes its owner. `message` must not be null. Nothing is allocated, nothing needs
 * to be freed, and the vtable's destroy does nothing.
 *
 * `child_fd` should be the write end of a pipe, close-on-exec and non-blocking: a child then loses a message rather than
 * wait for a parent that doesn't read. The process must ignore SIGPIPE (Rust programs do) if the read end may be closed.
 */
void xenlight_logger_init(struct xenlight_logger *logger, xenlight_message_fn *message, xenlight_progress_fn *progress,
                          void *data, xentoollog_level min_level, int child_fd);

/**
 * Sends a message to any xentoollog logger, as libxl does. For tests and stand-ins for libxl.
 */
void xenlight_logger_emit(xentoollog_logger *logger, xentoollog_level level, int errnoval, const char *context,
                          const char *text);

#endif
