/* Names of types and enumerations. Included by ../xenlutil.h. */

/**
 * A parsed file, or what is needed to parse one.
 */
typedef struct XLU_Config XLU_Config;

/**
 * A list value; lives as long as its `XLU_Config`.
 */
typedef struct XLU_ConfigList XLU_ConfigList;

/**
 * A value; lives as long as its `XLU_Config`.
 */
typedef struct XLU_ConfigValue XLU_ConfigValue;

/**
 * What a value is.
 */
enum XLU_ConfigValueType {
    /** Text; numbers too. */
    XLU_STRING = 0,
    /** A list. */
    XLU_LIST = 1,
};
