// Weight gradient of a convolution of spike bits: for each weight, the gradients at the positions
// that its spikes reach are added up.
//
// Positions are cut into blocks. In a block the bits are transposed, so that each channel has one
// list of positions. Each kernel tap adds, for these lists, rows of a window of gradients that is
// surrounded by zeros: a tap only shifts the window's beginning, and borders need no case.
//
// With a stride, a tap sees only inputs of one residue in each direction, its phase. Taken by
// themselves, the inputs and taps of a phase are a convolution without stride.
#include <vector>

#include "conv.h"
#include "export.h"
#include "number.h"
#include "parallel.h"

namespace {

// One direction of one phase: its inputs `first`, `first` + stride, ..., and its kernel taps
// `phase`, `phase` + stride, ... Tap m takes input j to output j - m + shift. Outputs are padded to
// all those that a tap could reach: input j is seen by the last tap at place j, by the first one
// at place j + taps - 1.
struct Axis {
  int64_t phase, stride, taps, first, count, shift;

  Axis(int64_t size, int64_t phase_, const Conv& conv)
      : phase(phase_),
        stride(conv.stride),
        taps((conv.kernel - phase + stride - 1) / stride),
        shift((conv.padding - phase + stride - 1) / stride) {
    first = shift * stride + phase - conv.padding;
    count = std::max<int64_t>(0, (size - first + stride - 1) / stride);
  }
  int64_t padded() const { return count + taps - 1; }
  int64_t input(int64_t j) const { return first + j * stride; }
  // It may lie outside.
  int64_t output(int64_t place) const { return place - (taps - 1) + shift; }
};

struct Phase {
  Axis vertical, horizontal;
  int64_t block_rows, blocks, taps;

  Phase(const Conv& conv, int64_t y, int64_t x, int64_t positions)
      : vertical(conv.height, y, conv),
        horizontal(conv.width, x, conv),
        block_rows(std::max<int64_t>(1, positions / std::max<int64_t>(1, horizontal.padded()))),
        blocks((conv.images * vertical.padded() + block_rows - 1) / block_rows),
        taps(vertical.taps * horizontal.taps) {}
};

// Rows of bits become columns: halves change places, then quarters, and so on.
void transpose(uint64_t* rows) {
  uint64_t low = 0x00000000ffffffff;
  for (int half = 32; half > 0; half /= 2, low ^= low << half)
    for (int square = 0; square < 64; square += 2 * half)
      for (int i = square; i < square + half; ++i) {
        const uint64_t change = (rows[i] >> half ^ rows[i + half]) & low;
        rows[i] ^= change << half;
        rows[i + half] ^= change;
      }
}

// The positions of the spikes of a block, one list for each channel.
struct SpikeLists {
  Aligned<uint32_t> indices;
  std::vector<uint32_t*> channels;  // where each list begins, and at last where it ends
};

SpikeLists write_lists(const uint64_t* bits, const Conv& conv, const Phase& phase, int64_t block) {
  const Axis &vertical = phase.vertical, &horizontal = phase.horizontal;
  const int64_t words = conv.words(), pitch = horizontal.padded();
  const int64_t squares = (phase.block_rows * pitch + 63) / 64;
  std::vector<uint64_t> squared(words * squares * 64);
  int64_t spikes = 0;
  for (int64_t r = 0; r < phase.block_rows; ++r) {
    const int64_t row = block * phase.block_rows + r;
    const int64_t image = row / vertical.padded();
    const int64_t j = row % vertical.padded() - (vertical.taps - 1);
    if (image >= conv.images || j < 0) continue;
    const uint64_t* line = bits + (image * conv.height + vertical.input(j)) * conv.width * words;
    for (int64_t x = 0; x < horizontal.count; ++x)
      for (int64_t w = 0; w < words; ++w) {
        const uint64_t word = line[horizontal.input(x) * words + w];
        squared[w * squares * 64 + r * pitch + x] = word;
        spikes += __builtin_popcountll(word);
      }
  }
  SpikeLists lists{make_aligned<uint32_t>(spikes + SLACK), {}};
  lists.channels.reserve(conv.channels + 1);
  uint32_t* end = lists.indices.get();
  for (int64_t c = 0; c < conv.channels; ++c) {
    uint64_t* square = squared.data() + c / 64 * squares * 64;
    if (c % 64 == 0)
      for (int64_t i = 0; i < squares; ++i) transpose(square + i * 64);
    lists.channels.push_back(end);
    for (int64_t i = 0; i < squares; ++i)
      end = append_set_bits(square[i * 64 + c % 64], i * 64, end);
  }
  lists.channels.push_back(end);
  return lists;
}

// Gradients of a panel around a block, [block rows + taps - 1][padded width], zeros outside.
template <class Stored>
class Window {
  using Real = Wide<Stored>;

 public:
  Window(const Conv& conv, const Phase& phase, const Stored* grad, const Panel<Real>& panel)
      : conv_(conv),
        phase_(phase),
        panel_(panel),
        grad_(grad + panel.first),
        pitch_(phase.horizontal.padded()),
        known_((phase.vertical.taps - 1) * pitch_),
        values_(make_aligned<Real>((known_ + phase.block_rows * pitch_) * panel.columns)) {
    std::fill_n(values_.get(), known_ * panel.columns, Real(0));
  }

  // Rows that the block before has, too, are moved, the others are read.
  void move_to(int64_t block) {
    const int64_t columns = panel_.columns;
    Real* value = values_.get();
    std::copy_n(value + phase_.block_rows * pitch_ * columns, known_ * columns, value);
    value += known_ * columns;
    for (int64_t r = 0; r < phase_.block_rows; ++r) {
      const int64_t row = block * phase_.block_rows + r;
      const int64_t image = row / phase_.vertical.padded();
      const int64_t y = phase_.vertical.output(row % phase_.vertical.padded());
      const bool exists = image < conv_.images && y >= 0 && y < conv_.out_height;
      for (int64_t place = 0; place < pitch_; ++place, value += columns) {
        const int64_t x = phase_.horizontal.output(place);
        const bool inside = exists && x >= 0 && x < conv_.out_width;
        const int64_t outputs = inside ? panel_.outputs : 0;
        if (inside) {
          next_ = (image * conv_.out_height + y) * conv_.out_width + x;
          const Stored* from = grad_ + next_++ * conv_.outputs;
          for (int64_t o = 0; o < outputs; ++o) value[o] = widen(from[o]);
        }
        std::fill(value + outputs, value + columns, Real(0));
      }
    }
    const int64_t positions = conv_.images * conv_.out_height * conv_.out_width;
    ask_until_ = std::min(next_ + phase_.block_rows * conv_.out_width, positions);
  }
  // Asks the memory for some more of what the next block reads: done between additions, it hides
  // the waiting.
  void ask(int64_t positions) {
    for (; positions > 0 && next_ < ask_until_; --positions, ++next_)
      for (int64_t o = 0; o < panel_.columns; o += 64 / sizeof(Stored))
        __builtin_prefetch(grad_ + next_ * conv_.outputs + o, 0, 2);
  }
  // Where the window begins for a tap, counted from the last one.
  uintptr_t seen_by(int64_t down, int64_t right) const {
    return reinterpret_cast<uintptr_t>(values_.get() + (down * pitch_ + right) * panel_.columns);
  }

 private:
  const Conv& conv_;
  const Phase& phase_;
  const Panel<Real>& panel_;
  const Stored* grad_;
  int64_t pitch_, known_;
  Aligned<Real> values_;
  int64_t next_ = 0, ask_until_ = 0;  // positions not yet read or asked for
};

// sums [tap of the phase, from the last][channel][output] of channels `first` .. `last`.
template <int row_bytes, class Stored>
void add_panel(const std::vector<SpikeLists>& blocks, const Phase& phase, int64_t first,
               int64_t last, Window<Stored>& window, Wide<Stored>* sums) {
  using Real = Wide<Stored>;
  constexpr int64_t columns = row_bytes / sizeof(Real);
  const int64_t weights = phase.taps * (last - first);
  const int64_t share = (phase.block_rows * phase.horizontal.padded() + weights - 1) / weights;
  std::fill_n(sums, weights * columns, Real(0));
  for (size_t block = 0; block < blocks.size(); ++block) {
    window.move_to(block);
    Real* sum = sums;
    for (int64_t i = 0; i < phase.vertical.taps; ++i)
      for (int64_t j = 0; j < phase.horizontal.taps; ++j) {
        uint32_t* const* channel = blocks[block].channels.data() + first;
        for (int64_t c = first; c < last; ++c, ++channel, sum += columns) {
          window.ask(share);
          add_rows<row_bytes>(window.seen_by(i, j), channel[0], channel[1], sum);
        }
      }
  }
}

// Writes a panel's sums to where they belong in [O, I, k, k].
template <class Real>
void store_panel(const Real* sum, const Conv& conv, const Phase& phase, const Panel<Real>& panel,
                 int64_t first, int64_t last, Real* out) {
  const Axis &vertical = phase.vertical, &horizontal = phase.horizontal;
  for (int64_t i = vertical.taps - 1; i >= 0; --i)
    for (int64_t j = horizontal.taps - 1; j >= 0; --j) {
      const int64_t row = vertical.phase + i * vertical.stride;
      const int64_t tap = row * conv.kernel + horizontal.phase + j * horizontal.stride;
      for (int64_t c = first; c < last; ++c, sum += panel.columns)
        for (int64_t o = 0; o < panel.outputs; ++o)
          out[(panel.first + o) * conv.fan_in() + c * conv.kernel * conv.kernel + tap] = sum[o];
    }
}

template <class Stored>
int add_phase(const uint64_t* bits, const Stored* grad, Wide<Stored>* out, const Conv& conv,
              const Phase& phase) {
  using Real = Wide<Stored>;
  std::vector<SpikeLists> blocks(phase.blocks);
  const auto write = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) blocks[b] = write_lists(bits, conv, phase, b);
  };
  if (parallel_for(phase.blocks, 1, write)) return 1;
  // Each job owns some channels of a panel, enough of them to pay for reading the panel's window.
  const int64_t panels = Panel<Real>::count(conv);
  const int64_t share = std::max<int64_t>(16, panels * conv.channels / (2 * conv.threads));
  const int64_t groups = std::max<int64_t>(1, conv.channels / share);
  const int64_t channels = (conv.channels + groups - 1) / groups;
  return parallel_for(panels * groups, 1, [&](int64_t begin, int64_t end) {
    const auto sums = make_aligned<Real>(phase.taps * channels * wide_columns<Real>);
    for (int64_t job = begin; job < end; ++job) {
      const Panel<Real> panel(conv, job / groups);
      const int64_t first = job % groups * channels;
      const int64_t last = std::min(first + channels, conv.channels);
      if (first >= last) continue;
      Window<Stored> window(conv, phase, grad, panel);
      const auto add =
          panel.is_narrow() ? add_panel<NARROW_ROW, Stored> : add_panel<WIDE_ROW, Stored>;
      add(blocks, phase, first, last, window, sums.get());
      store_panel(sums.get(), conv, phase, panel, first, last, out);
    }
  });
}

template <class Stored>
int add_phases(const uint64_t* bits, const Stored* grad, Wide<Stored>* out, const Conv& conv) {
  const int64_t phases = std::min(conv.stride, conv.kernel);
  const int64_t positions = cached_rows<Wide<Stored>>(conv);
  for (int64_t y = 0; y < phases; ++y)
    for (int64_t x = 0; x < phases; ++x)
      if (add_phase(bits, grad, out, conv, Phase(conv, y, x, positions))) return 1;
  return 0;
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
