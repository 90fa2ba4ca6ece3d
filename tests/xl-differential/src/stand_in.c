/*
 * Stands in for the hypervisor and xenstored, so that libxl's reading of configurations works on any machine, and with
 * it `xl create -n FILE`: that needs libxl's context, and of the hypervisor only its version, its CPUs, what it is
 * capable of and that there are no other domains.
 *
 * It is compiled against the headers of the release whose xl it is for, so that the compiler compares every
 * function here with its declaration there, and loaded in front of that xl's libraries (LD_PRELOAD). The functions of
 * libxenctrl and libxenstore replace the real ones; those of libxl and libxlutil go on to them.
 *
 * -D XEN_MINOR=17     the hypervisor is Xen 4.17
 * -D CPUS=8           it has these CPUs,
 * -D NODES=2          in equal parts on these NUMA nodes
 * -D LIMIT_SECONDS=20 the program is ended after these seconds; 0 is no limit
 *
 * XL_CONF in the environment names the file to read for /etc/xen/xl.conf; without it there is none.
 * With XL_KEYS in the environment, every key that xl asks a configuration for is said on standard error:
 * `key FILE NAME set` or `key FILE NAME unset`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libxl.h>
#include <libxl_utils.h>
#include <libxlutil.h>
#include <xenctrl.h>
#include <xenstore.h>

/* What the handles of the replaced libraries point to. Nobody looks inside. */
static char handle;

__attribute__((constructor)) static void limit(void)
{
    alarm(LIMIT_SECONDS);
}

/* libxenctrl */

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild_logger, unsigned open_flags)
{
    (void)logger, (void)dombuild_logger, (void)open_flags;
    return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return 0;
}

int xc_physinfo(xc_interface *xch, xc_physinfo_t *info)
{
    (void)xch;
    memset(info, 0, sizeof *info);
    info->threads_per_core = 1;
    info->cores_per_socket = CPUS / NODES;
    info->nr_cpus = CPUS;
    info->max_cpu_id = CPUS - 1;
    info->nr_nodes = NODES;
    info->max_node_id = NODES - 1;
    info->capabilities = XEN_SYSCTL_PHYSCAP_hvm | XEN_SYSCTL_PHYSCAP_pv | XEN_SYSCTL_PHYSCAP_hap |
                         XEN_SYSCTL_PHYSCAP_shadow | XEN_SYSCTL_PHYSCAP_directio;
    return 0;
}

int xc_get_max_cpus(xc_interface *xch)
{
    (void)xch;
    return CPUS;
}

int xc_get_max_nodes(xc_interface *xch)
{
    (void)xch;
    return NODES;
}

/* As the hypercall: without an array, the number of entries; else what fits into it. */
int xc_cputopoinfo(xc_interface *xch, unsigned *max_cpus, xc_cputopo_t *cputopo)
{
    (void)xch;
    if (cputopo)
        for (unsigned cpu = 0; cpu < *max_cpus && cpu < CPUS; cpu++)
            cputopo[cpu] = (xc_cputopo_t){ .core = cpu, .socket = cpu / (CPUS / NODES), .node = cpu / (CPUS / NODES) };
    *max_cpus = CPUS;
    return 0;
}

int xc_numainfo(xc_interface *xch, unsigned *max_nodes, xc_meminfo_t *meminfo, uint32_t *distance)
{
    (void)xch;
    for (unsigned from = 0; meminfo && from < *max_nodes && from < NODES; from++)
        meminfo[from] = (xc_meminfo_t){ .memsize = UINT64_C(4) << 30, .memfree = UINT64_C(2) << 30 };
    for (unsigned i = 0; distance && *max_nodes == NODES && i < NODES * NODES; i++)
        distance[i] = i / NODES == i % NODES ? 10 : 20;
    *max_nodes = NODES;
    return 0;
}

/* No pool has a name but that of number 0. */
xc_cpupoolinfo_t *xc_cpupool_getinfo(xc_interface *xch, uint32_t poolid)
{
    (void)xch, (void)poolid;
    errno = ENOENT;
    return NULL;
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned max_domains, xc_domaininfo_t *info)
{
    (void)xch, (void)first_domain, (void)max_domains, (void)info;
    return 0;
}

/* As a hypervisor without XSM. */
int xc_flask_context_to_sid(xc_interface *xch, char *buf, uint32_t size, uint32_t *sid)
{
    (void)xch, (void)buf, (void)size, (void)sid;
    errno = ENOSYS;
    return -1;
}

long xc_sharing_freed_pages(xc_interface *xch)
{
    (void)xch;
    return 0;
}

long xc_sharing_used_frames(xc_interface *xch)
{
    (void)xch;
    return 0;
}

/* Everything that the version is asked for, but for the numbers, is the empty text. */
int xc_version(xc_interface *xch, int cmd, void *arg)
{
    (void)xch;
    switch (cmd) {
    case XENVER_version:
        return 4 << 16 | XEN_MINOR;
    case XENVER_pagesize:
        return 4096;
    case XENVER_extraversion:
        memset(arg, 0, sizeof(xen_extraversion_t));
        return 0;
    case XENVER_compile_info:
        memset(arg, 0, sizeof(xen_compile_info_t));
        return 0;
    case XENVER_capabilities:
        memset(arg, 0, sizeof(xen_capabilities_info_t));
        return 0;
    case XENVER_changeset:
        memset(arg, 0, sizeof(xen_changeset_info_t));
        return 0;
    case XENVER_platform_parameters:
        memset(arg, 0, sizeof(xen_platform_parameters_t));
        return 0;
    case XENVER_commandline:
        memset(arg, 0, sizeof(xen_commandline_t));
        return 0;
    default:
        errno = ENOSYS;
        return -1;
    }
}

#if XEN_MINOR >= 18

char *xc_xenver_extraversion(xc_interface *xch)
{
    (void)xch;
    return strdup("");
}

char *xc_xenver_capabilities(xc_interface *xch)
{
    (void)xch;
    return strdup("");
}

char *xc_xenver_changeset(xc_interface *xch)
{
    (void)xch;
    return strdup("");
}

char *xc_xenver_commandline(xc_interface *xch)
{
    (void)xch;
    return strdup("");
}

char *xc_xenver_buildid(xc_interface *xch)
{
    (void)xch;
    return strdup("");
}

#endif

/* libxenstore */

struct xs_handle *xs_open(unsigned long flags)
{
    (void)flags;
    return (struct xs_handle *)&handle;
}

struct xs_handle *xs_daemon_open(void)
{
    return (struct xs_handle *)&handle;
}

void xs_close(struct xs_handle *xsh)
{
    (void)xsh;
}

void xs_daemon_close(struct xs_handle *xsh)
{
    (void)xsh;
}

void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned *len)
{
    (void)h, (void)t;
    if (strcmp(path, "/local/pool/0/name")) {
        errno = ENOENT;
        return NULL;
    }
    if (len)
        *len = strlen("Pool-0");
    return strdup("Pool-0");
}

/* libxl: xl reads files with it, xl.conf and the guest's. */

/* The function of this name that the next library has. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int libxl_read_file_contents(libxl_ctx *ctx, const char *filename, void **data_r, int *datalen_r)
{
    if (!strcmp(filename, "/etc/xen/xl.conf")) {
        filename = getenv("XL_CONF");
        if (!filename)
            return ENOENT;
    }
    return NEXT(libxl_read_file_contents)(ctx, filename, data_r, datalen_r);
}

/* libxlutil: the keys that xl asks for. */

/* The configurations that have been opened, which are xl.conf and the guest's. */
static struct {
    const XLU_Config *config;
    const char *file;
} opened[8];

XLU_Config *xlu_cfg_init(FILE *report, const char *report_filename)
{
    XLU_Config *config = NEXT(xlu_cfg_init)(report, report_filename);
    for (unsigned i = 0; i < sizeof opened / sizeof *opened; i++)
        if (!opened[i].config || opened[i].config == config) {
            opened[i].config = config;
            opened[i].file = strstr(report_filename, "/xl.conf") ? "xl.conf" : "xl.cfg";
            break;
        }
    return config;
}

/* Says what was asked for; `rc` is ESRCH if the key is not in the file. */
static int asked(const XLU_Config *config, const char *name, int rc)
{
    if (getenv("XL_KEYS"))
        for (unsigned i = 0; i < sizeof opened / sizeof *opened; i++)
            if (opened[i].config == config)
                fprintf(stderr, "key %s %s %s\n", opened[i].file, name, rc == ESRCH ? "unset" : "set");
    return rc;
}

int xlu_cfg_get_string(const XLU_Config *config, const char *n, const char **value_r, int dont_warn)
{
    return asked(config, n, NEXT(xlu_cfg_get_string)(config, n, value_r, dont_warn));
}

int xlu_cfg_replace_string(const XLU_Config *config, const char *n, char **value_r, int dont_warn)
{
    return asked(config, n, NEXT(xlu_cfg_replace_string)(config, n, value_r, dont_warn));
}

int xlu_cfg_get_long(const XLU_Config *config, const char *n, long *value_r, int dont_warn)
{
    return asked(config, n, NEXT(xlu_cfg_get_long)(config, n, value_r, dont_warn));
}

int xlu_cfg_get_bounded_long(const XLU_Config *config, const char *n, long min, long max, long *value_r,
                             int dont_warn)
{
    return asked(config, n, NEXT(xlu_cfg_get_bounded_long)(config, n, min, max, value_r, dont_warn));
}

int xlu_cfg_get_defbool(const XLU_Config *config, const char *n, libxl_defbool *b, int dont_warn)
{
    return asked(config, n, NEXT(xlu_cfg_get_defbool)(config, n, b, dont_warn));
}

int xlu_cfg_get_list(const XLU_Config *config, const char *n, XLU_ConfigList **list_r, int *entries_r,
                     int dont_warn)
{
    return asked(config, n, NEXT(xlu_cfg_get_list)(config, n, list_r, entries_r, dont_warn));
}

int xlu_cfg_get_list_as_string_list(const XLU_Config *config, const char *n, libxl_string_list *sl, int dont_warn)
{
    return asked(config, n, NEXT(xlu_cfg_get_list_as_string_list)(config, n, sl, dont_warn));
}
