// Which of the compiled instruction sets this processor, and the operating system, have.

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Tiles are a large state of each thread, so that Linux wants to be asked before a process uses them.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long ASK = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ASK, TILES) == 0;
#else
    return false;
#endif
}

}  // namespace

extern "C" int best_instruction_set() {  // the order is that of LEVELS in __init__.py
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        unsigned a, b, c, d;
        const bool asked = __get_cpuid_count(7, 0, &a, &b, &c, &d);
        const bool tiles = asked && (d >> 22 & 1) && (d >> 24 & 1);  // AMX_BF16, AMX_TILE
        if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return 2;  // AVX512_BF16
        return tiles && may_use_tiles() ? 4 : 3;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
