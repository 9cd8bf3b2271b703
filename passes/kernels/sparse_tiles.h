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
    t.column = index % tiles_across(p) * p->columns;
    index /= tiles_across(p);
    t.row = index % tiles_down(p) * p->rows;
    index /= tiles_down(p);
    t.sample = index % sample_blocks(p) * LANES;
    index /= sample_blocks(p);
    t.part = index % parts(p) * p->part;
    t.group = index / parts(p);
    t.rows = least(p->rows, p->out_rows - t.row);
    t.columns = least(p->columns, p->out_columns - t.column);
    t.outputs = least(p->part, p->outputs - t.part);
    return t;
}

/* Packs the lines of `channels` channels from `channel` on. `down` and `across` say which row and column, counted from those of the tile's
 * first pixel, stand where in the buffer. */
static void pack_tile(const plan_t *p, const tile_t *t, const float *restrict x, const int32_t *down, const int32_t *across, int64_t channel,
                      int64_t channels, float *restrict buffer) {
    const int64_t top = t->row * p->stride_rows, left = t->column * p->stride_columns;
    for (int64_t c = 0; c < channels; c++) {
        const float *from = x + (t->group * p->channels + channel + c) * p->x_channel + t->sample * p->x_sample;
        for (int64_t i = 0; i < p->lines_down; i++) {
            const int64_t row = top + down[i];
            for (int64_t j = 0; j < p->lines_across; j++, buffer += LANES) {
                const int64_t column = left + across[j];
                if (row < 0 || row >= p->in_rows || column < 0 || column >= p->in_columns)
                    store(buffer, splat(0.0f));
                else
                    gather_line(from + row * p->x_row + column * p->x_column, p->x_sample, p->samples - t->sample - column * p->lane_step, buffer);
            }
        }
    }
}
