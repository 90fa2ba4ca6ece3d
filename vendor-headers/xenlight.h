/*
 * xenlight.h: the part of libxl (libxenlight), xentoollog and libxenctrl that this project uses, declared in our own words.
 *
 * Not Xen's libxl.h and not to be mixed with it: the names of functions, types and constants are those of the library,
 * because they have to be, but only what we call is here, and structs that we never look into stay opaque.
 * Valid for Xen 4.14 to 4.22; the build of xenlight-sys proves it against Xen's own headers where it finds them.
 *
 * Three parts, so that the proof can include each in its own way:
 *   types.h      names of types, enumerations
 *   layouts.h    the structs that are read or written by layout
 *   functions.h  prototypes
 */
#ifndef XENLIGHT_VENDOR_H
#define XENLIGHT_VENDOR_H

#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/time.h>
#include <sys/types.h>

/* The proof defines these two differently: there our struct gets a name of its own beside Xen's. */
/* A struct that is the same, byte for byte, in every supported release. */
#define XENLIGHT_LAYOUT(name) name
/* The leading fields, the same in every supported release, of a struct that goes on differently. */
#define XENLIGHT_PREFIX(name) name

#include "xenlight/types.h"
#include "xenlight/layouts.h"
#include "xenlight/functions.h"

#endif
