#include "logger.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(XENLIGHT_CHILD_RECORD_MAX <= PIPE_BUF, "a record must be written in one piece");
_Static_assert(sizeof(struct xenlight_child_record) == 24, "the header has no padding");
_Static_assert(offsetof(struct xenlight_logger, vtable) == 0, "libxl's pointer is ours");

enum { NO_CONTEXT = 0xffff, CONTEXT_MAX = 64 };

/* In a forked child: the stack, vsnprintf, getpid and write only. */
static void write_record(int fd, pid_t pid, xentoollog_level level, int errnoval, const char *context,
                         const char *format, va_list al) {
    char buffer[XENLIGHT_CHILD_RECORD_MAX];
    struct xenlight_child_record header = {
        .magic = XENLIGHT_CHILD_MAGIC,
        .pid = pid,
        .level = (int32_t)level,
        .errnoval = errnoval,
        .context_len = NO_CONTEXT,
    };
    size_t used = sizeof header;

    if (context) {
        size_t length = strnlen(context, CONTEXT_MAX);
        memcpy(buffer + used, context, length);
        header.context_len = (uint16_t)length;
        used += length;
    }

    /* The terminator of vsnprintf needs its byte, but isn't written. */
    size_t room = sizeof buffer - used;
    int wanted = vsnprintf(buffer + used, room, format, al);
    if (wanted < 0)
        return;
    size_t length = (size_t)wanted;
    if (length >= room) {
        length = room - 1;
        header.flags = XENLIGHT_CHILD_TRUNCATED;
    }
    header.text_len = (uint16_t)length;
    used += length;

    memcpy(buffer, &header, sizeof header);
    ssize_t written = write(fd, buffer, used);
    (void)written; /* There is nobody to tell. */
}

static void on_vmessage(xentoollog_logger *base, xentoollog_level level, int errnoval, const char *context,
                        const char *format, va_list al) {
    struct xenlight_logger *logger = (struct xenlight_logger *)base;
    int saved_errno = errno;

    if (level < logger->min_level)
        return;

    pid_t pid = getpid();
    if (pid != logger->owner) {
        if (logger->child_fd >= 0)
            write_record(logger->child_fd, pid, level, errnoval, context, format, al);
        errno = saved_errno;
        return;
    }

    char small[1024];
    va_list again;
    va_copy(again, al);
    int wanted = vsnprintf(small, sizeof small, format, al);
    if (wanted < 0) {
        logger->message(logger->data, level, errnoval, context, format);
    } else if ((size_t)wanted < sizeof small) {
        logger->message(logger->data, level, errnoval, context, small);
    } else {
        char *large = malloc((size_t)wanted + 1);
        if (large)
            vsnprintf(large, (size_t)wanted + 1, format, again);
        /* Without memory, the beginning is better than nothing. */
        logger->message(logger->data, level, errnoval, context, large ? large : small);
        free(large);
    }
    va_end(again);
    errno = saved_errno;
}

static void on_progress(xentoollog_logger *base, const char *context, const char *doing_what, int percent,
                        unsigned long done, unsigned long total) {
    struct xenlight_logger *logger = (struct xenlight_logger *)base;
    int saved_errno = errno;

    if (logger->progress && getpid() == logger->owner)
        logger->progress(logger->data, context, doing_what, percent, done, total);
    errno = saved_errno;
}

static void on_destroy(xentoollog_logger *base) {
    (void)base; /* The memory is the caller's. */
}

void xenlight_logger_init(struct xenlight_logger *logger, xenlight_message_fn *message, xenlight_progress_fn *progress,
                          void *data, xentoollog_level min_level, int child_fd) {
    *logger = (struct xenlight_logger){
        .vtable = {.vmessage = on_vmessage, .progress = on_progress, .destroy = on_destroy},
        .message = message,
        .progress = progress,
        .data = data,
        .min_level = min_level,
        .owner = getpid(),
        .child_fd = child_fd,
    };
}

static void emit(xentoollog_logger *logger, xentoollog_level level, int errnoval, const char *context,
                 const char *format, ...) {
    va_list al;
    va_start(al, format);
    logger->vmessage(logger, level, errnoval, context, format, al);
    va_end(al);
}

void xenlight_logger_emit(xentoollog_logger *logger, xentoollog_level level, int errnoval, const char *context,
                          const char *text) {
    emit(logger, level, errnoval, context, "%s", text);
}
