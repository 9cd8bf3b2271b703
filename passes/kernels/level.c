#define _DEFAULT_SOURCE
#include <stddef.h>
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

/* Asks for pages of 2 MiB in memory that is about to be written: new pages of 4 KiB take longer than the writing. */
__attribute__((visibility("default"))) void fxs_large_pages(void *memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)1 << 21, start = ((uintptr_t)memory + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)memory + (uintptr_t)bytes) & ~(page - 1);
    if (end > start) (void)madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}
