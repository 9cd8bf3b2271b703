/* How the sparse kernels walk through a convolution: in tiles of `rows` x `columns` output pixels of LANES samples, whose input, padded with
 * zeros, is packed into a buffer that stays in the first cache. There every line of LANES samples has its place, so that a tap of the kernel
 * is one offset, whatever the stride, padding and dilation.
 *
 * The numbers of a plan come from tiles.py, in this order. Strides count elements. */
typedef struct {
    int64_t groups, channels, outputs; /* of each group */
    int64_t block, blocks;             /* channels packed at a time */
    int64_t part;                      /* output channels worked on at a time */
    int64_t samples, lane_step;        /* lane_step: samples that one step to the right passes, 0 but for rows that stand for pixels */
    int64_t x_channel, x_row, x_column, x_sample, in_rows, in_columns;
    int64_t y_channel, y_row, y_column, y_sample, out_rows, out_columns;
    int64_t stride_rows, stride_columns;
    int64_t rows, columns;         /* of a tile */
    int64_t lines_down, lines_across; /* of the buffer, for each channel */
    int64_t work;                  /* floats of each thread */
} plan_t;

typedef struct {
    int64_t group, part, sample, row, column; /* where a tile starts */
    int64_t rows, columns, outputs;           /* how much of it there is */
} tile_t;

INLINE int64_t tiles_down(const plan_t *p) { return up(p->out_rows, p->rows); }
INLINE int64_t tiles_across(const plan_t *p) { return up(p->out_columns, p->columns); }
INLINE int64_t sample_blocks(const plan_t *p) { return p->lane_step ? 1 : up(p->samples, LANES); }
INLINE int64_t parts(const plan_t *p) { return up(p->outputs, p->part); }
INLINE int64_t tiles(const plan_t *p) { return p->groups * parts(p) * sample_blocks(p) * tiles_down(p) * tiles_across(p); }

INLINE tile_t tile_at(const plan_t *p, int64_t index) {
    tile_t t;
    t.sample = index % sample_blocks(p) * LANES; /* first: neighbours in memory */
    index /= sample_blocks(p);
    t.column = index % tiles_across(p) * p->columns;
    index /= tiles_across(p);
    t.row = index % tiles_down(p) * p->rows;
    index /= tiles_down(p);
    t.part = index % parts(p) * p->part;
    t.group = index / parts(p);
    t.rows = least(p->rows, p->out_rows - t.row);
    t.columns = least(p->columns, p->out_columns - t.column);
    t.outputs = least(p->part, p->outputs - t.part);
    return t;
}

/* Where a tile finds its rows and columns: elements from the first of a channel, and OUTSIDE for those that are padding. */
typedef struct {
    int64_t *rows, *columns;
} lines_t;

#define OUTSIDE INT64_MIN

/* `down` and `across` say which row and column, counted from those of the tile's first pixel, stand where in the buffer. */
INLINE void find_lines(const plan_t *p, const tile_t *t, const int32_t *down, const int32_t *across, lines_t found) {
    for (int64_t i = 0; i < p->lines_down; i++) {
        const int64_t row = t->row * p->stride_rows + down[i];
        found.rows[i] = row < 0 || row >= p->in_rows ? OUTSIDE : row * p->x_row;
    }
    for (int64_t j = 0; j < p->lines_across; j++) {
        const int64_t column = t->column * p->stride_columns + across[j];
        found.columns[j] = column < 0 || column >= p->in_columns ? OUTSIDE : column * p->x_column;
    }
}

/* Packs lines where channels are innermost in memory. */
static void pack_turned(const plan_t *p, const tile_t *t, const float *restrict x, lines_t lines, int64_t channels, float *restrict buffer) {
    const int64_t size = p->lines_down * p->lines_across * LANES;
    for (int64_t i = 0; i < p->lines_down; i++)
        for (int64_t j = 0; j < p->lines_across; j++, buffer += LANES) {
            const int is_outside = lines.rows[i] == OUTSIDE || lines.columns[j] == OUTSIDE;
            const int64_t samples = p->samples - t->sample - (t->column + j) * p->lane_step;
            for (int64_t c = 0; c < channels; c += LANES) {
                if (!is_outside)
                    turn_in(x + lines.rows[i] + lines.columns[j] + c, p->x_sample, samples, channels - c, buffer + c * size, size);
                else
                    for (int64_t k = c; k < least(c + LANES, channels); k++) store(buffer + k * size, splat(0.0f));
            }
        }
}

/* Packs the lines of `channels` channels from `channel` on; the lanes of samples that do not exist are 0. */
static void pack_tile(const plan_t *p, const tile_t *t, const float *restrict x, lines_t lines, int64_t channel, int64_t channels,
                      float *restrict buffer) {
    const int64_t width = p->lines_across, left = p->samples - t->sample;
    const int is_whole = p->x_sample == 1 && left - (t->column + t->columns - 1) * p->lane_step >= LANES;
    x += (t->group * p->channels + channel) * p->x_channel + t->sample * p->x_sample;
    if (p->x_channel == 1 && p->x_sample != 1) {
        pack_turned(p, t, x, lines, channels, buffer);
        return;
    }
    for (int64_t c = 0; c < channels; c++, x += p->x_channel)
        for (int64_t i = 0; i < p->lines_down; i++, buffer += width * LANES) {
            if (lines.rows[i] == OUTSIDE) {
                for (int64_t j = 0; j < width; j++) store(buffer + j * LANES, splat(0.0f));
                continue;
            }
            const float *from = x + lines.rows[i];
            for (int64_t j = 0; j < width; j++) {
                if (lines.columns[j] == OUTSIDE)
                    store(buffer + j * LANES, splat(0.0f));
                else if (is_whole)
                    store(buffer + j * LANES, load(from + lines.columns[j]));
                else
                    gather_line(from + lines.columns[j], p->x_sample, left - (t->column + j) * p->lane_step, buffer + j * LANES);
            }
        }
}

/* Lists the lines that pack_tile is to read, as far as they exist, and returns how many: while one block is multiplied, the next is fetched. */
INLINE int64_t list_lines(const plan_t *p, const tile_t *t, const float *x, lines_t lines, int64_t channel, int64_t channels, const float **list) {
    int64_t count = 0;
    x += (t->group * p->channels + channel) * p->x_channel + t->sample * p->x_sample;
    if (p->x_sample != 1) return 0;
    for (int64_t c = 0; c < channels; c++, x += p->x_channel)
        for (int64_t i = 0; i < p->lines_down; i++) {
            if (lines.rows[i] == OUTSIDE) continue;
            for (int64_t j = 0; j < p->lines_across; j++)
                if (lines.columns[j] != OUTSIDE) list[count++] = x + lines.rows[i] + lines.columns[j];
        }
    return count;
}

/* What a thread works on: places of lines of this tile and the next, lines to be fetched, packed input, which is returned, and sums. */
INLINE float *work_of(const plan_t *p, float *work, lines_t *lines, lines_t *after, const float ***ahead) {
#if defined(_OPENMP)
    work += omp_get_thread_num() * p->work;
#endif
    const int64_t places = p->lines_down + p->lines_across, count = p->block * p->lines_down * p->lines_across;
    lines->rows = (int64_t *)(void *)work;
    lines->columns = lines->rows + p->lines_down;
    after->rows = lines->rows + places;
    after->columns = lines->columns + places;
    *ahead = (const float **)(void *)(lines->rows + 2 * places);
    return work + up(4 * places + 2 * count, LANES) * LANES;
}
