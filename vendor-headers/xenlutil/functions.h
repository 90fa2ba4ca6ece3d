/*
 * Prototypes. Included by ../xenlutil.h, and by the proof after Xen's own headers.
 *
 * int is an errno value, 0 for success; the `get` functions: ESRCH not set, EINVAL not of that kind, ERANGE too large.
 * Complaints are written to the file given to xlu_cfg_init, unless `dont_warn`. One thread at a time per XLU_Config.
 */

/**
 * A parser that writes its complaints to `report` (which must stay open) with `report_filename` (copied) in them.
 * Null: out of memory.
 */
XLU_Config *xlu_cfg_init(FILE *report, const char *report_filename);

/**
 * Parses a file. After a failure only `xlu_cfg_destroy` is allowed.
 */
int xlu_cfg_readfile(XLU_Config *config, const char *real_filename);

/**
 * Parses `length` bytes of text. After a failure only `xlu_cfg_destroy` is allowed.
 */
int xlu_cfg_readdata(XLU_Config *config, const char *data, int length);

/**
 * Frees the parser and all its values.
 */
void xlu_cfg_destroy(XLU_Config *config);

/**
 * The text of a setting; the config's.
 */
int xlu_cfg_get_string(const XLU_Config *config, const char *name, const char **value_out, int dont_warn);

/**
 * The text of a setting in place of `*value_io`, which is freed; the caller's.
 */
int xlu_cfg_replace_string(const XLU_Config *config, const char *name, char **value_io, int dont_warn);

/**
 * The number of a setting, decimal, octal (leading 0) or hexadecimal (0x).
 */
int xlu_cfg_get_long(const XLU_Config *config, const char *name, long *value_out, int dont_warn);

/**
 * The same, within limits.
 */
int xlu_cfg_get_bounded_long(const XLU_Config *config, const char *name, long min, long max, long *value_out,
                             int dont_warn);

/**
 * The list of a setting, and its length; each may be null.
 */
int xlu_cfg_get_list(const XLU_Config *config, const char *name, XLU_ConfigList **list_out, int *length_out,
                     int dont_warn);

/**
 * The text of a list's element; null past its end and for nested lists.
 */
const char *xlu_cfg_get_listitem(const XLU_ConfigList *list, int entry);

/**
 * A list's element, of whatever kind; null past its end.
 */
XLU_ConfigValue *xlu_cfg_get_listitem2(const XLU_ConfigList *list, int entry);

/**
 * What a value is.
 */
enum XLU_ConfigValueType xlu_cfg_value_type(const XLU_ConfigValue *value);

/**
 * The text of a value; the config's.
 */
int xlu_cfg_value_get_string(const XLU_Config *config, XLU_ConfigValue *value, char **value_out, int dont_warn);

/**
 * The list of a value; the config's.
 */
int xlu_cfg_value_get_list(const XLU_Config *config, XLU_ConfigValue *value, XLU_ConfigList **list_out,
                           int dont_warn);
