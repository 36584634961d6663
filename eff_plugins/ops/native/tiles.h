// AMX tiles, configured for as long as an object of this class lives; what was configured before is put back.

#pragma once

#ifdef __AMX_BF16__

#include <immintrin.h>

#include <cstdint>

namespace {

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // of a row
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64, "as the processor reads it");
constexpr TileShapes ALL_WHOLE;  // constant: some compilers' intrinsic does not say that it reads all of this

class TileConfig {
   public:
    TileConfig() {
        _tile_storeconfig(before_);
        _tile_loadconfig(&ALL_WHOLE);
    }
    ~TileConfig() {
        if (before_[0])
            _tile_loadconfig(before_);
        else
            _tile_release();
    }
    TileConfig(const TileConfig&) = delete;
    TileConfig& operator=(const TileConfig&) = delete;

   private:
    alignas(64) uint8_t before_[64];
};

}  // namespace

#endif
