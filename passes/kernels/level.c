#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

/* The best level of vector instructions that both this build and this machine have. */
__attribute__((visibility("default"))) const char *fxs_level(void) {
#if defined(__x86_64__) && defined(FXS_WITH_LEVELS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "portable";
}

/* Counted up whenever an argument of a kernel changes. */
__attribute__((visibility("default"))) int fxs_version(void) { return 2; }

/* Asks for large pages for memory that was not touched yet: there are 512 times fewer of them to be filled with zeros and looked up. */
__attribute__((visibility("default"))) void fxs_large_pages(void *from, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, first = ((uintptr_t)from + page - 1) / page * page, last = ((uintptr_t)from + (uintptr_t)bytes) / page * page;
    if (last > first) (void)madvise((void *)first, last - first, MADV_HUGEPAGE); /* only a wish: it does not matter if it fails */
#else
    (void)from, (void)bytes;
#endif
}
