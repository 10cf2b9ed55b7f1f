// Weight gradient of a convolution of spike bits: for each weight, the gradients at the positions
// that its spikes reach are added up.
//
// Positions are cut into blocks, outputs into panels. In a block, each channel has one list of the
// positions of its spikes. Each kernel tap adds, for these lists, rows of a window of gradients
// that is surrounded by zeros: a tap only shifts the window's beginning, and borders need no case.
//
// Threads share the work in two ways. Each has its own groups of panels: a group reads its columns
// of the gradients together, which memory likes better than one panel after the other. And if
// weights are few, positions are cut into parts that have sums of their own.
#include <vector>

#include "conv.h"
#include "export.h"
#include "number.h"
#include "parallel.h"
#include "spike_positions.h"
#include "vector.h"

namespace {

// Bytes of a row of a panel. Each list loads and stores its sums once: the shorter these are, the
// more positions can lie in the first caches, and the longer are the lists.
constexpr int ROW = 128;
template <class Real>
constexpr int64_t COLUMNS = ROW / sizeof(Real);

constexpr int64_t BLOCK = 448;    // positions
constexpr int64_t GROUP = 8;      // panels
constexpr int64_t PARTS = 16;     // at most
constexpr int64_t PER_PART = 16;  // positions for each weight of an output, at least

// Sums of all weights, [part][panel][tap][channel][output], and how the work on them is cut. The
// number of parts depends on the shape alone, that of groups on the number of threads, too.
template <class Real>
struct Sums {
  int64_t weights, panels, parts, groups;  // weights of one output
  Aligned<Real> values;

  explicit Sums(const Conv& conv)
      : weights(conv.fan_in()),
        panels((conv.outputs + COLUMNS<Real> - 1) / COLUMNS<Real>),
        parts(std::clamp<int64_t>(
            conv.images * conv.out_height * conv.out_width / (PER_PART * weights), 1, PARTS)),
        groups((panels + GROUP - 1) / GROUP),
        values(make_aligned<Real>(parts * panels * weights * COLUMNS<Real>)) {
    if (parts % conv.threads)  // all threads get equally many jobs
      groups = (groups + conv.threads - 1) / conv.threads * conv.threads;
  }
  int64_t jobs() const { return parts * groups; }
  int64_t first_panel(int64_t group) const { return group * panels / groups; }
  Real* of(int64_t part, int64_t panel) const {
    return values.get() + (part * panels + panel) * weights * COLUMNS<Real>;
  }
};

// Gradients of some panels around a block, [panel][block rows + taps - 1][padded width][output],
// zeros outside.
template <class Stored>
class Window {
  using Real = Wide<Stored>;

 public:
  Window(const Conv& conv, const Phase& phase, const Stored* grad, int64_t first, int64_t last)
      : conv_(conv),
        phase_(phase),
        grad_(grad),
        first_(first),
        last_(last),
        values_(make_aligned<Real>((last - first) * phase.places() * COLUMNS<Real>)) {}

  void move_to(int64_t block) {
    const Axis &vertical = phase_.vertical, &horizontal = phase_.horizontal;
    Real* value = values_.get();
    for (int64_t r = 1 - vertical.taps; r < phase_.block_rows; ++r) {
      const int64_t row = block * phase_.block_rows + r;
      const int64_t image = row / vertical.padded();
      const int64_t y = vertical.output(row % vertical.padded());
      const bool exists = row >= 0 && image < conv_.images && y >= 0 && y < conv_.out_height;
      for (int64_t place = 0; place < horizontal.padded(); ++place, value += COLUMNS<Real>) {
        const int64_t x = horizontal.output(place);
        const bool inside = exists && x >= 0 && x < conv_.out_width;
        if (inside) next_ = (image * conv_.out_height + y) * conv_.out_width + x + 1;
        read(inside ? grad_ + (next_ - 1) * conv_.outputs : nullptr, value);
      }
    }
    const int64_t positions = conv_.images * conv_.out_height * conv_.out_width;
    end_ = std::min(next_ + phase_.block_rows * conv_.out_width, positions);
  }
  // Where a panel begins for the tap that lies so far before the last one.
  uintptr_t seen_by(int64_t panel, int64_t down, int64_t right) const {
    const int64_t place = (panel - first_) * phase_.places() + down * phase_.horizontal.padded();
    return reinterpret_cast<uintptr_t>(values_.get() + (place + right) * COLUMNS<Real>);
  }
  // Between these lies what the next block will read for a panel, and this one did not.
  const Stored* next(int64_t panel) const {
    return grad_ + next_ * conv_.outputs + panel * COLUMNS<Real>;
  }
  const Stored* end() const { return grad_ + end_ * conv_.outputs; }

 private:
  // The gradients of a position, or zeros.
  void read(const Stored* grad, Real* value) {
    const int64_t outputs = conv_.outputs, size = phase_.places() * COLUMNS<Real>;
    const int64_t first = first_ * COLUMNS<Real>, last = last_ * COLUMNS<Real>;
    for (int64_t o = first; o < last; o += COLUMNS<Real>, value += size) {
      auto* to = reinterpret_cast<Vector<Real>*>(value);
      for (int64_t i = o; i < o + COLUMNS<Real>; i += LANES<Real>)
        *to++ = grad ? load(grad + i, outputs - i) : Vector<Real>{};
    }
  }

  const Conv& conv_;
  const Phase& phase_;
  const Stored* grad_;
  int64_t first_, last_;  // panels
  Aligned<Real> values_;
  int64_t next_ = 0, end_ = 0;  // positions
};

// Adds what a block gives to the sums of a panel. Between additions it asks the memory for what the
// next block reads, which hides the waiting. Inlined, its loops would lack registers.
template <class Stored>
__attribute__((noinline)) void add_block(const SpikePositions& spikes, const Conv& conv,
                                         const Phase& phase, const Window<Stored>& window,
                                         int64_t panel, Wide<Stored>* sums) {
  constexpr int64_t columns = COLUMNS<Wide<Stored>>, line = 64 / sizeof(Stored);
  const int64_t channels = conv.channels, outputs = conv.outputs, lists = phase.taps * channels;
  const int64_t share = (phase.positions() + lists - 1) / lists;
  const Stored *next = window.next(panel), *const end = window.end();
  for (int64_t i = 0; i < phase.vertical.taps; ++i)
    for (int64_t j = 0; j < phase.horizontal.taps; ++j) {
      const uintptr_t seen = window.seen_by(panel, i, j);
      Wide<Stored>* sum = sums + phase.tap_from_last(i, j, conv) * channels * columns;
      for (int64_t c = 0; c < channels; ++c, sum += columns) {
        for (int64_t n = share; n > 0 && next < end; --n, next += outputs)
          for (int64_t o = 0; o < columns; o += line) __builtin_prefetch(next + o, 0, 2);
        add_rows<ROW>(seen, spikes.channels[c], spikes.channels[c + 1], sum);
      }
    }
}

// Sets the sums of a phase's taps to zero.
template <class Real>
void clear(const Conv& conv, const Phase& phase, Real* sums) {
  const int64_t size = conv.channels * COLUMNS<Real>;
  for (int64_t i = 0; i < phase.vertical.taps; ++i)
    for (int64_t j = 0; j < phase.horizontal.taps; ++j)
      std::fill_n(sums + phase.tap_from_last(i, j, conv) * size, size, Real(0));
}

template <class Stored>
int add_phase(const uint64_t* bits, const Stored* grad, const Conv& conv, const Phase& phase,
              const Sums<Wide<Stored>>& sums) {
  std::vector<SpikePositions> blocks(phase.blocks);
  const auto find = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) blocks[b] = SpikePositions(bits, conv, phase, b);
  };
  if (parallel_for(phase.blocks, 1, find)) return 1;
  // Jobs are dealt out like cards: times differ in their spikes, and each thread should see all.
  const int64_t share = sums.jobs() / conv.threads;
  return parallel_for(sums.jobs(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t job = i % share * conv.threads + i / share;
      const int64_t part = job / sums.groups, group = job % sums.groups;
      const int64_t first = sums.first_panel(group), last = sums.first_panel(group + 1);
      const int64_t last_block = (part + 1) * phase.blocks / sums.parts;
      Window<Stored> window(conv, phase, grad, first, last);
      for (int64_t p = first; p < last; ++p) clear(conv, phase, sums.of(part, p));
      for (int64_t b = part * phase.blocks / sums.parts; b < last_block; ++b) {
        window.move_to(b);
        for (int64_t p = first; p < last; ++p)
          add_block(blocks[b], conv, phase, window, p, sums.of(part, p));
      }
    }
  });
}

// Adds up the sums of all parts and writes them to where they belong in [O, I, k, k], a few
// channels at a time, so that whole lines of cache are written.
template <class Real>
int add_parts(const Sums<Real>& sums, const Conv& conv, Real* out) {
  constexpr int64_t columns = COLUMNS<Real>, most = 32;
  const int64_t chunks = (conv.channels + most - 1) / most, taps = conv.kernel * conv.kernel;
  return parallel_for(sums.panels * chunks, 1, [&](int64_t begin, int64_t end) {
    const auto total = make_aligned<Real>(most * columns);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t panel = index / chunks, first = index % chunks * most;
      const int64_t channels = std::min(most, conv.channels - first);
      const int64_t outputs = std::min(columns, conv.outputs - panel * columns);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t place = (tap * conv.channels + first) * columns;
        std::copy_n(sums.of(0, panel) + place, channels * columns, total.get());
        for (int64_t part = 1; part < sums.parts; ++part) {
          const Real* sum = sums.of(part, panel) + place;
          for (int64_t i = 0; i < channels * columns; ++i) total[i] += sum[i];
        }
        Real* row = out + panel * columns * sums.weights + first * taps + tap;
        for (int64_t o = 0; o < outputs; ++o, row += sums.weights)
          for (int64_t c = 0; c < channels; ++c) row[c * taps] = total[c * columns + o];
      }
    }
  });
}

template <class Stored>
int add_phases(const uint64_t* bits, const Stored* grad, Wide<Stored>* out, const Conv& conv) {
  const Sums<Wide<Stored>> sums(conv);
  const int64_t phases = std::min(conv.stride, conv.kernel);
  for (int64_t y = 0; y < phases; ++y)
    for (int64_t x = 0; x < phases; ++x)
      if (add_phase(bits, grad, conv, Phase(conv, y, x, BLOCK), sums)) return 1;
  return add_parts(sums, conv, out);
}

}  // namespace

EXPORT int spike_conv_weight_grad(int32_t dtype, const Conv* conv, const uint64_t* bits,
                                  const void* grad, void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return unless_out_of_memory([&] {
      return add_phases(bits, static_cast<const Stored*>(grad), static_cast<Wide<Stored>*>(out),
                        *conv);
    });
  });
}
