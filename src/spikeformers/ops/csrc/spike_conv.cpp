// Convolution of spike bits: at each position the weight rows of the spikes there are added up.
//
// The weights of a panel lie as blocks [chunk of channels][kernel row], a block as rows [kernel
// column][channel of the chunk]. The spikes of a chunk in one input row are one list, too, ordered
// by [column][channel]. What one kernel row sees from one position is then a stretch of that list,
// and an index in the list, less that of the first column seen, is an index in the block. So a list
// is written once for all positions, kernel columns and panels, and borders only shorten stretches.
#include <atomic>
#include <type_traits>
#include <vector>

#include "conv.h"
#include "export.h"
#include "number.h"
#include "parallel.h"
#include "stream.h"

namespace {

// Positions of a tile: enough to pay for bringing each block into the first cache.
constexpr int64_t TILE_POSITIONS = 448;

// A thread takes the next tile when it is done with one, because spikes are not spread evenly: the
// time steps of a network lie one behind the other, and firing often begins late.
constexpr int64_t TILES_PER_THREAD = 4;

// Channels cut into chunks of whole words, so that a block fits into the first two caches. Larger
// ones are read too slowly, smaller ones leave too little to add up at a time.
struct Chunks {
  static constexpr int64_t BLOCK_BYTES = 64 * 1024;
  int64_t words, count;  // of a chunk; of chunks

  Chunks(const Conv& conv, int64_t row_bytes) {
    const int64_t block_rows = BLOCK_BYTES / row_bytes;
    const int64_t most = std::max<int64_t>(1, block_rows / (64 * conv.kernel));
    const int64_t least = (conv.words() + most - 1) / most;
    words = (conv.words() + least - 1) / least;
    count = (conv.words() + words - 1) / words;
  }
  int64_t first_channel(int64_t chunk) const { return chunk * words * 64; }
  int64_t channels(const Conv& conv, int64_t chunk) const {
    return std::min(words * 64, conv.channels - first_channel(chunk));
  }
};

// weight [O, I, k, k] -> [panel][chunk][kernel row][kernel column][channel][output]
//
// Few outputs are read side by side: a first cache can hold a line of each at any stride. Columns
// of a panel that belong to no output repeat the last one.
template <class Real, class Stored>
int pack(const Stored* weight, const Conv& conv, const Chunks& chunks, Real* packed) {
  constexpr int64_t together = 8;
  const int64_t taps = conv.kernel * conv.kernel, fan_in = conv.fan_in();
  const int64_t jobs = Panel<Real>::count(conv) * chunks.count;
  return parallel_for(jobs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const Panel<Real> panel(conv, job / chunks.count);
      const int64_t chunk = job % chunks.count, channels = chunks.channels(conv, chunk);
      const int64_t before = chunks.first_channel(chunk) * taps;
      Real* const block = packed + panel.first * fan_in + before * panel.columns;
      for (int64_t o = 0; o < panel.columns; o += together) {
        const Stored* from[together];
        for (int64_t i = 0; i < together; ++i)
          from[i] = weight + std::min(panel.first + o + i, conv.outputs - 1) * fan_in + before;
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t tap = 0; tap < taps; ++tap) {
            Real* to = block + (tap * channels + c) * panel.columns + o;
            for (int64_t i = 0; i < together; ++i) to[i] = widen(from[i][c * taps + tap]);
          }
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
        columns_(make_aligned<uint32_t*>(most_rows * chunks.count * (conv.width + 1))),
        outside_(conv.width + 1) {}

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
  // Where the spikes of each column begin, and at last where they end. A row outside has none.
  const uint32_t* const* columns(int64_t image, int64_t y, int64_t chunk) const {
    if (y < 0 || y >= conv_.height) return outside_.data();
    const int64_t row = image * conv_.height + y - first_row_;
    return columns_.get() + (row * chunks_.count + chunk) * (conv_.width + 1);
  }

 private:
  const Conv& conv_;
  const Chunks& chunks_;
  Aligned<uint32_t> indices_;
  Aligned<uint32_t*> columns_;
  std::vector<uint32_t*> outside_;
  int64_t first_row_ = 0;
};

// Some rows of output, of all images one below the other, and the rows of input that they see.
struct Tile {
  int64_t first, last, first_input, last_input;
};

std::vector<Tile> cut(const Conv& conv) {
  const int64_t rows = conv.images * conv.out_height;
  const int64_t share = conv.positions() / (TILES_PER_THREAD * conv.threads);
  const int64_t tile_rows = std::max<int64_t>(1, std::min(TILE_POSITIONS, share) / conv.out_width);
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

// Where the sums of a panel go when they are complete.
template <int row_bytes, class Stored>
class Results {
  using Real = Wide<Stored>;
  static constexpr int64_t columns = row_bytes / sizeof(Real), line = 64 / sizeof(Stored);

 public:
  // Past the caches go whole lines only, so panels must not share them.
  Results(Stored* out, const Conv& conv, const Panel<Real>& panel)
      : out_(out + panel.first),
        pitch_(conv.outputs),
        outputs_(panel.outputs),
        positions_(conv.positions()),
        large_(is_large<Stored>(positions_ * pitch_) && pitch_ % line == 0) {}

  void store(int64_t position, const Real* sum) const {
    if constexpr (std::is_same_v<Stored, Real>) {
      store_row(position, sum);
    } else {
      Stored row[columns];
      for (int64_t o = 0; o < columns; ++o) row[o] = narrow<Stored>(sum[o]);
      store_row(position, row);
    }
  }
  // Lets the caches read in time what is overwritten soon.
  void ask(int64_t position) const {
    if (large_ || position >= positions_) return;
    for (int64_t o = 0; o < outputs_; o += line)
      __builtin_prefetch(out_ + position * pitch_ + o, 1);
  }

 private:
  void store_row(int64_t position, const Stored* row) const {
    Stored* const to = out_ + position * pitch_;
    if (outputs_ == columns) ::store(to, row, columns, large_);
    else std::copy_n(row, outputs_, to);
  }

  Stored* out_;
  int64_t pitch_, outputs_, positions_;
  bool large_;
};

// The weights of a block, and its place among the blocks that a sum is made of.
template <class Real>
struct Block {
  const Real* rows;
  int64_t channels;
  bool is_first, is_last;
};

// Adds to the sums at one row of output what a block gives to them.
template <int row_bytes, class Stored>
void add_block(const Block<Wide<Stored>>& block, const uint32_t* const* column, const Conv& conv,
               Wide<Stored>* sum, const Results<row_bytes, Stored>& results, int64_t position) {
  using Real = Wide<Stored>;
  constexpr int64_t columns = row_bytes / sizeof(Real), ahead = 4;
  alignas(row_bytes) static constexpr Real zeros[columns] = {};
  alignas(row_bytes) Real complete[columns];
  for (int64_t x = 0; x < conv.out_width; ++x, ++position, sum += columns) {
    const int64_t left = x * conv.stride - conv.padding;
    const int64_t first = std::clamp<int64_t>(left, 0, conv.width);
    const int64_t last = std::clamp(left + conv.kernel, first, conv.width);
    const auto base = reinterpret_cast<uintptr_t>(block.rows) - left * block.channels * row_bytes;
    if (block.is_last) results.ask(position + ahead);
    add_rows<row_bytes>(base, column[first], column[last], block.is_first ? zeros : sum,
                        block.is_last ? complete : sum);
    if (block.is_last) results.store(position, complete);
  }
}

// The sums of a panel at all positions of a tile. Only what blocks hand to the next is in `sums`.
template <int row_bytes, class Stored>
void add_panel(const Wide<Stored>* rows, const SpikeLists& lists, const Tile& tile,
               const Conv& conv, const Chunks& chunks, Wide<Stored>* sums,
               const Results<row_bytes, Stored>& results) {
  constexpr int64_t columns = row_bytes / sizeof(Wide<Stored>);
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    const int64_t channels = chunks.channels(conv, chunk);
    for (int64_t i = 0; i < conv.kernel; ++i, rows += conv.kernel * channels * columns) {
      const bool is_first = chunk == 0 && i == 0;
      const bool is_last = chunk == chunks.count - 1 && i == conv.kernel - 1;
      const Block<Wide<Stored>> block{rows, channels, is_first, is_last};
      for (int64_t row = tile.first; row < tile.last; ++row) {
        const int64_t y = row % conv.out_height * conv.stride - conv.padding + i;
        add_block(block, lists.columns(row / conv.out_height, y, chunk), conv,
                  sums + (row - tile.first) * conv.out_width * columns, results,
                  row * conv.out_width);
      }
    }
  }
}

template <class Stored>
int convolve(const uint64_t* bits, const Stored* weight, Stored* out, const Conv& conv) {
  using Real = Wide<Stored>;
  const Chunks chunks(conv, Panel<Real>(conv, 0).columns * sizeof(Real));
  const std::vector<Tile> tiles = cut(conv);
  const int64_t panels = Panel<Real>::count(conv);
  int64_t most_inputs = 0, most_positions = 0;
  for (const Tile& tile : tiles) {
    most_inputs = std::max(most_inputs, tile.last_input - tile.first_input);
    most_positions = std::max(most_positions, (tile.last - tile.first) * conv.out_width);
  }
  const auto packed = make_aligned<Real>(panels * wide_columns<Real> * conv.fan_in());
  if (pack(weight, conv, chunks, packed.get())) return 1;
  std::atomic<size_t> next{0};
  const int64_t threads = std::min<int64_t>(conv.threads, tiles.size());
  return parallel_for(threads, 1, [&](int64_t, int64_t) {
    SpikeLists lists(conv, chunks, most_inputs);
    const auto sums = make_aligned<Real>(most_positions * wide_columns<Real>);
    for (size_t t = next++; t < tiles.size(); t = next++) {
      const Tile& tile = tiles[t];
      lists.write(bits, tile.first_input, tile.last_input);
      for (int64_t p = 0; p < panels; ++p) {
        const Panel<Real> panel(conv, p);
        const auto add = [&](auto results) {
          const Real* rows = packed.get() + panel.first * conv.fan_in();
          add_panel(rows, lists, tile, conv, chunks, sums.get(), results);
        };
        if (panel.is_narrow()) add(Results<NARROW_ROW, Stored>(out, conv, panel));
        else add(Results<WIDE_ROW, Stored>(out, conv, panel));
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
