// C ABI of encode: checks every number that decides where memory is touched, then shares the vectors out to threads.
#include <cstdint>

#include "encode/plan.hpp"
#include "simd/dispatch.hpp"
#include "simd/memory.hpp"

TQB_DECLARE(int64_t, encode_scratch, const tqb::Plan&)
TQB_DECLARE(tqb::Status, encode_range, const tqb::Plan&, const tqb::Input&, const tqb::Output&, int64_t, int64_t, uint8_t*)

namespace {

using namespace tqb;

constexpr int64_t kValues = 1 << 15;    // per piece of work: a few hundred vectors
constexpr int64_t kThreaded = 1 << 17;  // values from which threads are worth waking
constexpr int32_t kMostChannels = 1 << 15;

bool power_of_two(int64_t n) { return n > 0 && !(n & (n - 1)); }

bool turns(const Plan& p) {
    if (p.turn == none) return true;
    if (p.turned < 1 || p.dim % p.turned) return false;
    if (p.turn == hadamard) return power_of_two(p.turned) && p.before && p.after;
    return p.turn == dense && p.matrices && p.matrix_count > 0;
}

bool places(const int32_t* at, int32_t count, int32_t limit) {
    for (int32_t i = 0; at && i < count; ++i)
        if (at[i] < 0 || at[i] >= limit) return false;
    return true;
}

bool streams(const Plan& p, int32_t values) {
    for (int i = 0; i < p.planes; ++i) {
        const Plane& plane = p.plane[i];
        const bool width = (plane.bits >= 1 && plane.bits <= 8) || plane.bits == 16 || plane.bits == 32;
        if (!width || plane.shift < 0 || plane.shift > 31 || !plane.order) return false;
        if (int64_t(values) * plane.bits % 8 || !places(plane.order, values, values)) return false;
    }
    return true;
}

bool sane(const Plan& p) {
    if (p.format < codebook || p.format > cast || p.head_dim < 1 || p.dim < p.head_dim || p.dim > kMostChannels) return false;
    if (p.unit < 1 || p.unit > kMostChannels || p.group < 1 || p.planes < 1 || p.planes > kPlanes) return false;
    if (p.kept_count < 0 || p.kept_count > kKept || p.kept < float32 || p.kept > bfloat16 || !p.natural) return false;
    if (p.unit > 1 ? p.group != p.unit || p.planes != 1 || p.head_scale : p.dim % p.group) return false;
    if (p.format == codebook && (p.bits < 1 || p.bits > 8 || p.group % 4)) return false;
    if ((p.format == codebook || p.format == block_nonlinear) && (!p.edges || !p.levels)) return false;
    return turns(p) && places(p.channel, p.head_dim, p.dim) && streams(p, p.unit > 1 ? p.unit : p.dim);
}

bool sane(const Plan& p, const Input& in, const Output& out) {
    if (in.type < float32 || in.type > bfloat16 || in.batch < 0 || in.heads < 0 || in.tokens < 0 || in.tokens % p.unit) return false;
    if ((p.mean || p.head_scale) && p.heads != in.heads) return false;
    if (!in.batch || !in.heads || !in.tokens) return true;
    if (!in.x) return false;
    for (int i = 0; i < p.planes; ++i)
        if (!out.planes[i]) return false;
    for (int i = 0; i < p.kept_count; ++i)
        if (!out.kept[i]) return false;
    return true;
}

Status run(const Plan& p, const Input& in, const Output& out) {
    const int64_t units = in.batch * in.heads * in.tokens / p.unit, values = int64_t(p.unit) * p.dim;
    const int64_t aligned = (kValues / values + 15) / 16 * 16, piece = p.unit > 1 ? kValues / values + 1 : aligned > 0 ? aligned : 16;
    const int64_t pieces = (units + piece - 1) / piece, scratch = TQB_CHOSEN(encode_scratch)(p);
    int worst = fine;
#pragma omp parallel if (units * values >= kThreaded)
    {
        const Memory<uint8_t> memory(scratch);
#pragma omp for schedule(dynamic) reduction(max : worst)
        for (int64_t i = 0; i < pieces; ++i) {
            const int64_t first = i * piece, last = first + piece < units ? first + piece : units;
            const int status = memory.at ? TQB_CHOSEN(encode_range)(p, in, out, first, last, memory.at) : no_memory;
            worst = status > worst ? status : worst;
        }
    }
    return Status(worst);
}

}  // namespace

extern "C" {

// Whether a plan is sane; ask once, before it is run.
int tqbench_encode_check(const Plan* plan) { return plan && sane(*plan) ? fine : bad_arguments; }

// Returns 0; 1 if the arguments are not sane; 2 if x is not finite; 3 if a scale does not fit its type; 4 if there is no memory.
int tqbench_encode(const Plan* plan, const Input* in, const Output* out) {
    if (!plan || !in || !out || !sane(*plan, *in, *out)) return bad_arguments;
    return run(*plan, *in, *out);
}
}
