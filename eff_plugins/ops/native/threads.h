// The threads of torch: this library and torch load the same OpenMP runtime, and share its pool and torch.set_num_threads.
// Without OpenMP there is one.

#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

inline int64_t threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}
