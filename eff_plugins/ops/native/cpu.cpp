// Which of the compiled instruction sets this processor has.

extern "C" int best_instruction_set() {  // 0 portable, 1 AVX2 with FMA, 2 AVX-512
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
