// Convolution of spike bits: at each position the weight rows of the spikes there are added up.
//
// The weights of a panel lie as blocks [chunk of channels][kernel row], a block as rows [kernel
// column][channel of the chunk]. The spikes of a chunk in one input row are one list, too, ordered
// by [column][channel]. What one kernel row sees from one position is then a stretch of that list,
// and an index in the list, less that of the first column seen, is an index in the block. So a list
// is written once for all positions, kernel columns and panels, and borders only shorten stretches.
#include <vector>

#include "conv.h"
#include "export.h"
#include "number.h"
#include "parallel.h"

namespace {

// Positions of a tile: enough to pay for bringing each block into the first cache.
constexpr int64_t TILE_POSITIONS = 448;

// Channels cut into chunks of whole words, so that blocks fit into the first cache.
struct Chunks {
  int64_t words, count;  // of a chunk; of chunks

  Chunks(const Conv& conv, int64_t block_rows) {
    const int64_t most = std::max<int64_t>(1, block_rows / (64 * conv.kernel));
    const int64_t least = (conv.words() + most - 1) / most;
    words = (conv.words() + least - 1) / std::max<int64_t>(1, least);
    count = words ? (conv.words() + words - 1) / words : 0;
  }
  int64_t first_channel(int64_t chunk) const { return chunk * words * 64; }
  int64_t channels(const Conv& conv, int64_t chunk) const {
    return std::min(words * 64, conv.channels - first_channel(chunk));
  }
};

// weight [O, I, k, k] -> [panel][chunk][kernel row][kernel column][channel][output]
template <class Real, class Stored>
int pack(const Stored* weight, const Conv& conv, const Chunks& chunks, Real* packed) {
  const int64_t taps = conv.kernel * conv.kernel, fan_in = conv.fan_in();
  return parallel_for(Panel<Real>::count(conv), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const Panel<Real> panel(conv, p);
      const Stored* from = weight + panel.first * fan_in;
      Real* row = packed + panel.first * fan_in;
      for (int64_t chunk = 0; chunk < chunks.count; ++chunk)
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t c = 0; c < chunks.channels(conv, chunk); ++c, row += panel.columns) {
            const int64_t input = (chunks.first_channel(chunk) + c) * taps + tap;
            for (int64_t o = 0; o < panel.outputs; ++o) row[o] = widen(from[o * fan_in + input]);
            std::fill(row + panel.outputs, row + panel.columns, Real(0));
          }
    }
  });
}

// The spikes of consecutive rows of input, one list for each row and chunk.
class SpikeLists {
 public:
  SpikeLists(const Conv& conv, const Chunks& chunks, int64_t most_rows)
      : conv_(conv),
        chunks_(chunks),
        indices_(make_aligned<uint32_t>(most_rows * conv.width * conv.words() * 64 + SLACK)),
        columns_(make_aligned<uint32_t*>(most_rows * chunks.count * (conv.width + 1))) {}

  void write(const uint64_t* bits, int64_t first_row, int64_t last_row) {
    first_row_ = first_row;
    uint32_t *end = indices_.get(), **column = columns_.get();
    for (int64_t row = first_row; row < last_row; ++row)
      for (int64_t chunk = 0; chunk < chunks_.count; ++chunk) {
        const int64_t channels = chunks_.channels(conv_, chunk);
        const uint64_t* word = bits + row * conv_.width * conv_.words() + chunk * chunks_.words;
        *column++ = end;
        for (int64_t x = 0; x < conv_.width; ++x, word += conv_.words()) {
          for (int64_t c = 0; c < channels; c += 64)
            end = append_set_bits(word[c / 64], x * channels + c, end);
          *column++ = end;
        }
      }
  }
  // Where the spikes of each column begin, and at last where they end.
  const uint32_t* const* columns(int64_t row, int64_t chunk) const {
    return columns_.get() + ((row - first_row_) * chunks_.count + chunk) * (conv_.width + 1);
  }

 private:
  const Conv& conv_;
  const Chunks& chunks_;
  Aligned<uint32_t> indices_;
  Aligned<uint32_t*> columns_;
  int64_t first_row_ = 0;
};

// Some rows of output, of all images one below the other, and the rows of input that they see.
struct Tile {
  int64_t first, last, first_input, last_input;
};

std::vector<Tile> cut(const Conv& conv) {
  const int64_t rows = conv.images * conv.out_height, positions = rows * conv.out_width;
  const int64_t rounds = positions / (TILE_POSITIONS * conv.threads) + 1;
  const int64_t tile_rows = (rows + rounds * conv.threads - 1) / (rounds * conv.threads);
  const auto input = [&](int64_t row, int64_t kernel_row) {
    const int64_t y = row % conv.out_height * conv.stride - conv.padding + kernel_row;
    return row / conv.out_height * conv.height + std::clamp<int64_t>(y, 0, conv.height);
  };
  std::vector<Tile> tiles;
  for (int64_t row = 0; row < rows; row += tile_rows) {
    const int64_t last = std::min(row + tile_rows, rows);
    tiles.push_back({row, last, input(row, 0), input(last - 1, conv.kernel)});
  }
  return tiles;
}

// Adds to the sums of one row of output what a block gives to them. Where `out` is given, they will
// soon be stored there, and the lines of cache are asked for.
template <int row_bytes, class Real, class Stored>
void add_block(const Real* block, int64_t channels, const uint32_t* const* column, const Conv& conv,
               Real* sum, const Stored* out) {
  constexpr int64_t columns = row_bytes / sizeof(Real), line = 64 / sizeof(Stored);
  for (int64_t x = 0; x < conv.out_width; ++x, sum += columns) {
    const int64_t left = x * conv.stride - conv.padding;
    const int64_t first = std::max<int64_t>(left, 0);
    const int64_t last = std::min(left + conv.kernel, conv.width);
    const uintptr_t base = reinterpret_cast<uintptr_t>(block) - left * channels * row_bytes;
    if (out)
      for (int64_t o = 0; o < columns; o += line) __builtin_prefetch(out + x * conv.outputs + o, 1);
    if (first < last) add_rows<row_bytes>(base, column[first], column[last], sum);
  }
}

// The sums of a panel at all positions of a tile, to be stored at `out`.
template <int row_bytes, class Real, class Stored>
void add_panel(const Real* block, const SpikeLists& lists, const Tile& tile, const Conv& conv,
               const Chunks& chunks, Real* sums, const Stored* out) {
  constexpr int64_t columns = row_bytes / sizeof(Real);
  std::fill_n(sums, (tile.last - tile.first) * conv.out_width * columns, Real(0));
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    const int64_t channels = chunks.channels(conv, chunk);
    for (int64_t i = 0; i < conv.kernel; ++i, block += conv.kernel * channels * columns) {
      const bool is_last = chunk == chunks.count - 1 && i == conv.kernel - 1;
      for (int64_t row = tile.first; row < tile.last; ++row) {
        const int64_t y = row % conv.out_height * conv.stride - conv.padding + i;
        if (y < 0 || y >= conv.height) continue;
        const int64_t input = row / conv.out_height * conv.height + y;
        const int64_t position = (row - tile.first) * conv.out_width;
        add_block<row_bytes>(block, channels, lists.columns(input, chunk), conv,
                             sums + position * columns,
                             is_last ? out + position * conv.outputs : nullptr);
      }
    }
  }
}

template <class Stored>
int convolve(const uint64_t* bits, const Stored* weight, Stored* out, const Conv& conv) {
  using Real = Wide<Stored>;
  const Chunks chunks(conv, cached_rows<Real>(conv));
  const std::vector<Tile> tiles = cut(conv);
  const int64_t panels = Panel<Real>::count(conv);
  int64_t most_inputs = 0, most_positions = 0;
  for (const Tile& tile : tiles) {
    most_inputs = std::max(most_inputs, tile.last_input - tile.first_input);
    most_positions = std::max(most_positions, (tile.last - tile.first) * conv.out_width);
  }
  const auto packed = make_aligned<Real>(panels * wide_columns<Real> * conv.fan_in());
  if (pack(weight, conv, chunks, packed.get())) return 1;
  return parallel_for(tiles.size(), 1, [&](int64_t begin, int64_t end) {
    SpikeLists lists(conv, chunks, most_inputs);
    const auto sums = make_aligned<Real>(most_positions * wide_columns<Real>);
    for (int64_t t = begin; t < end; ++t) {
      const Tile& tile = tiles[t];
      lists.write(bits, tile.first_input, tile.last_input);
      for (int64_t p = 0; p < panels; ++p) {
        const Panel<Real> panel(conv, p);
        const auto add = panel.is_narrow() ? add_panel<NARROW_ROW, Real, Stored>
                                           : add_panel<WIDE_ROW, Real, Stored>;
        Stored* to = out + tile.first * conv.out_width * conv.outputs + panel.first;
        add(packed.get() + panel.first * conv.fan_in(), lists, tile, conv, chunks, sums.get(), to);
        const Real* sum = sums.get();
        for (int64_t i = (tile.last - tile.first) * conv.out_width; i > 0; --i) {
          for (int64_t o = 0; o < panel.outputs; ++o) to[o] = narrow<Stored>(sum[o]);
          to += conv.outputs;
          sum += panel.columns;
        }
      }
    }
  });
}

}  // namespace

EXPORT int spike_conv(int32_t dtype, const Conv* conv, const uint64_t* bits, const void* weight,
                      void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return unless_out_of_memory([&] {
      return convolve(bits, static_cast<const Stored*>(weight), static_cast<Stored*>(out), *conv);
    });
  });
}
