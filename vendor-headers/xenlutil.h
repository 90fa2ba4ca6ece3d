/*
 * xenlutil.h: the part of libxlutil that this project uses, declared in our own words: the parser of xl.cfg and xl.conf
 * files. Not Xen's libxlutil.h and not to be mixed with it; see xenlight.h.
 */
#ifndef XENLUTIL_VENDOR_H
#define XENLUTIL_VENDOR_H

#include <stdio.h>

#include "xenlutil/types.h"
#include "xenlutil/functions.h"

#endif
