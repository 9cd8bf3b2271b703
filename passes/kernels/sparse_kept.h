/* The gradient of a weight at its kept positions alone: for each entry the product of a tile of gradients, which stays in registers, with the
 * tile of pixels that the entry reads. */

INLINE float sum_of(vec value) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)value);
#else
    float sum = 0.0f;
    UNROLL for (int i = 0; i < LANES; i++) sum += value[i];
    return sum;
#endif
}

INLINE void correlate(const int R, const int Q, const job_t *given, float *restrict found) {
    const job_t copy = *given, *job = &copy;
    const int64_t pitch = job->pitch, share = up(job->to_fetch, job->outputs);
    for (int64_t o = 0; o < job->outputs; o++) {
        fetch_ahead(job, o, share);
        if (job->segments[o] == job->segments[o + 1]) continue;
        vec grads[MOST_PIXELS];
        const float *from = job->from + o * job->from_output;
        UNROLL for (int i = 0; i < R * Q; i++) grads[i] = load(from + i * LANES);
        for (int64_t k = job->segments[o]; k < job->segments[o + 1]; k++) {
            const float *line = job->buffer + job->offsets[k];
            vec even = splat(0.0f), odd = splat(0.0f);
            UNROLL for (int r = 0; r < R; r++) {
                UNROLL for (int q = 0; q < Q; q++) {
                    if ((r * Q + q) % 2)
                        odd += grads[r * Q + q] * load(line + q * LANES);
                    else
                        even += grads[r * Q + q] * load(line + q * LANES);
                }
                line += pitch;
                KEEP(line);
            }
            found[k] += sum_of(even + odd);
        }
    }
}

#define CORRELATE_OF(R, Q) static void correlate_##R##_##Q(const job_t *job, float *found) { correlate(R, Q, job, found); }
ALL_SIZES(CORRELATE_OF)
#define CORRELATE_AT(R, Q) [R][Q] = correlate_##R##_##Q,
static void (*const CORRELATE[MOST_ROWS + 1][MOST_PIXELS + 1])(const job_t *, float *) = {ALL_SIZES(CORRELATE_AT)};

/* Packs the gradients of a tile, output channel by output channel. */
static void pack_gradient(const plan_t *p, const tile_t *t, const float *restrict g, float *restrict packed) {
    const int64_t size = t->rows * t->columns * LANES;
    if (p->y_channel == 1 && p->y_sample != 1) { /* channels are innermost */
        for (int64_t r = 0; r < t->rows; r++)
            for (int64_t q = 0; q < t->columns; q++, packed += LANES)
                for (int64_t o = 0; o < t->outputs; o += LANES)
                    turn_in(g + o + r * p->y_row + q * p->y_column, p->y_sample, p->samples - t->sample - (t->column + q) * p->lane_step,
                            t->outputs - o, packed + o * size, size);
        return;
    }
    for (int64_t o = 0; o < t->outputs; o++)
        for (int64_t r = 0; r < t->rows; r++)
            for (int64_t q = 0; q < t->columns; q++, packed += LANES) {
                const float *from = g + o * p->y_channel + r * p->y_row + q * p->y_column;
                __builtin_prefetch(from + 4 * p->y_channel);
                gather_line(from, p->y_sample, p->samples - t->sample - (t->column + q) * p->lane_step, packed);
            }
}

/* Stores the gradients of a program's entries, each where `order` says, for x and the gradient g of the convolution's result, which stands
 * for y in the plan. `found`: room for `entries` of each thread. */
EXPORT void KERNEL(sparse_kept)(const float *x, const float *g, const plan_t *p, const int32_t *down, const int32_t *across,
                                const int64_t *segments, const int32_t *offsets, const int32_t *order, int64_t entries, float *found, float *out,
                                float *work, int threads) {
    const int64_t count = tiles(p), all_outputs = p->groups * p->outputs;
    const int64_t pitch = p->lines_across * LANES, room = p->block * p->lines_down * pitch;
    int several = 1;
#pragma omp parallel num_threads(threads < 1 ? 1 : threads)
    {
        lines_t lines, lines_after;
        const float **ahead;
        float *buffer = work_of(p, work, &lines, &lines_after, &ahead), *grads = buffer + room, *own = found;
#if defined(_OPENMP)
        own += omp_get_thread_num() * entries;
#pragma omp single
        several = omp_get_num_threads();
#endif
        for (int64_t k = 0; k < entries; k++) own[k] = 0.0f;
#pragma omp for schedule(static)
        for (int64_t index = 0; index < count; index++) {
            const tile_t t = tile_at(p, index);
            const int64_t output = t.group * p->outputs + t.part;
            pack_gradient(p, &t, g + output * p->y_channel + t.sample * p->y_sample + t.row * p->y_row + t.column * p->y_column, grads);
            const tile_t following = tile_at(p, least(index + 1, count - 1));
            find_lines(p, &t, down, across, lines);
            find_lines(p, &following, down, across, lines_after);
            job_t job = {.buffer = buffer, .pitch = pitch, .offsets = offsets, .from = grads, .outputs = t.outputs};
            job.from_output = t.rows * t.columns * LANES;
            for (int64_t b = 0; b < p->blocks; b++) {
                const int64_t channel = b * p->block;
                pack_tile(p, &t, x, lines, channel, least(p->block, p->channels - channel), buffer);
                const int64_t after = b + 1 < p->blocks ? channel + p->block : 0, channels = least(p->block, p->channels - after);
                job.to_fetch = after ? list_lines(p, &t, x, lines, after, channels, ahead) : list_lines(p, &following, x, lines_after, 0, channels, ahead);
                job.ahead = ahead;
                job.segments = segments + b * all_outputs + output;
                CORRELATE[t.rows][t.columns](&job, own);
            }
        }
#pragma omp for schedule(static)
        for (int64_t k = 0; k < entries; k++) {
            float sum = 0.0f;
            for (int thread = 0; thread < several; thread++) sum += found[thread * entries + k];
            out[order[k]] = sum;
        }
    }
}
