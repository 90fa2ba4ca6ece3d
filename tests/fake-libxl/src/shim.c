/* Calls through the logger's table, whose first function takes a va_list. */
#include <stdarg.h>
#include <stddef.h>

struct logger {
    void (*vmessage)(struct logger *, int level, int errnoval, const char *context, const char *format, va_list);
    void (*progress)(struct logger *, const char *context, const char *doing, int percent, unsigned long done,
                     unsigned long total);
    void (*destroy)(struct logger *);
};

static void message(struct logger *l, int level, int errnoval, const char *context, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    l->vmessage(l, level, errnoval, context, format, args);
    va_end(args);
}

void fake_shim_message(struct logger *l, int level, int errnoval, const char *context, const char *text)
{
    message(l, level, errnoval, context, "%s", text);
}

void fake_shim_progress(struct logger *l, const char *context, const char *doing, int percent, unsigned long done,
                        unsigned long total)
{
    if (l->progress)
        l->progress(l, context, doing, percent, done, total);
}
