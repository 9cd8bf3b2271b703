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
