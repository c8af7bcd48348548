// Decode of 8-bit blocks: out[i] = codes[i] * scales[i / 32]. The product of an int8 and an fp16 value is exact in float,
// so this equals the reference bit for bit.
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t kBlock = 32;

float from_half(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = h >> 10 & 0x1fu, mantissa = h & 0x3ffu;
    uint32_t bits;
    if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24 is exact
        float value = float(mantissa) * 0x1p-24f;
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace

// Returns 0, or 1 if the arguments are not sane.
extern "C" int tqbench_decode_block8(const int8_t* codes, const uint16_t* scales, float* out, int64_t blocks) {
    if (blocks < 0 || (blocks > 0 && (!codes || !scales || !out))) return 1;
#pragma omp parallel for schedule(static) if (blocks > 4096)
    for (int64_t b = 0; b < blocks; ++b) {
        const float scale = from_half(scales[b]);
        for (int64_t i = b * kBlock; i < (b + 1) * kBlock; ++i) out[i] = float(codes[i]) * scale;
    }
    return 0;
}
