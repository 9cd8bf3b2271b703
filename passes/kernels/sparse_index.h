/* The positions of a sparse weight, in the orders that the kernels read them; see sparse_weight.py.
 *
 * A weight has `rows` rows of `columns` positions each. An order of it is `starts` (rows + 1), and for each entry its column and the place of
 * its value. A program is an order for one geometry: the columns of a row cut into blocks, and in place of each column an offset. */

INLINE int is_kept(const float *w, const uint8_t *kept, int64_t position) { return kept ? kept[position] != 0 : w[position] != 0.0f; }

/* Stores where the entries of each row start: those of the mask `kept`, or where that is null what is not 0. */
EXPORT void KERNEL(sparse_count)(const float *w, const uint8_t *kept, int64_t rows, int64_t columns, int64_t *starts, int threads) {
#pragma omp parallel for num_threads(team(threads, rows *columns)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int32_t count = 0;
        if (kept)
            for (int64_t i = row * columns; i < (row + 1) * columns; i++) count += kept[i] != 0;
        else
            for (int64_t i = row * columns; i < (row + 1) * columns; i++) count += w[i] != 0.0f;
        starts[row + 1] = count;
    }
    starts[0] = 0;
    for (int64_t row = 0; row < rows; row++) starts[row + 1] += starts[row];
}

EXPORT void KERNEL(sparse_index)(const float *w, const uint8_t *kept, int64_t rows, int64_t columns, const int64_t *starts, int32_t *found,
                                 float *values, int threads) {
#pragma omp parallel for num_threads(team(threads, rows *columns)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t next = starts[row];
        const int64_t end = starts[row + 1], first = row * columns;
        for (int64_t i = 0; next < end; i++) { /* no branch: what is not kept is overwritten */
            found[next] = (int32_t)i;
            values[next] = w[first + i];
            next += is_kept(w, kept, first + i);
        }
    }
}

/* The values of the same positions in another weight. */
EXPORT void KERNEL(sparse_values)(const float *w, int64_t rows, int64_t columns, const int64_t *starts, const int32_t *found, float *values,
                                  int threads) {
#pragma omp parallel for num_threads(team(threads, starts[rows])) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = starts[row]; k < starts[row + 1]; k++) values[k] = w[row * columns + found[k]];
}

/* Stores the values at all positions, with 0 elsewhere. */
EXPORT void KERNEL(sparse_dense)(const float *values, int64_t rows, int64_t columns, const int64_t *starts, const int32_t *found, float *w,
                                 int threads) {
#pragma omp parallel for num_threads(team(threads, rows *columns)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < columns; i++) w[row * columns + i] = 0.0f;
        for (int64_t k = starts[row]; k < starts[row + 1]; k++) w[row * columns + found[k]] = values[k];
    }
}

/* The order by input channel: rows are input channels of all groups, columns output channel in the group and tap. */
EXPORT void KERNEL(sparse_turn)(const int64_t *starts, const int32_t *found, int64_t groups, int64_t outputs, int64_t channels, int64_t taps,
                                int64_t *turned_starts, int32_t *turned, int32_t *places, int threads) {
    (void)threads;
    const int64_t rows = groups * channels;
    memset(turned_starts, 0, (size_t)(rows + 1) * sizeof *turned_starts);
    for (int64_t o = 0; o < groups * outputs; o++) {
        int64_t *counts = turned_starts + 1 + o / outputs * channels;
        for (int64_t k = starts[o]; k < starts[o + 1]; k++) counts[found[k] / (int32_t)taps]++;
    }
    for (int64_t row = 0; row < rows; row++) turned_starts[row + 1] += turned_starts[row];
    for (int64_t o = 0; o < groups * outputs; o++) {
        int64_t *next = turned_starts + o / outputs * channels;
        for (int64_t k = starts[o]; k < starts[o + 1]; k++) {
            const int32_t channel = found[k] / (int32_t)taps;
            const int64_t place = next[channel]++;
            turned[place] = (int32_t)(o % outputs * taps + found[k] - channel * (int32_t)taps);
            places[place] = (int32_t)k;
        }
    }
    for (int64_t row = rows; row > 0; row--) turned_starts[row] = turned_starts[row - 1];
    turned_starts[0] = 0;
}

/* Cuts the columns of each row into blocks of `width` and orders the entries by block, row and column. Stores where the entries of each
 * (block, row) start in `segments` (blocks * rows + 1), and for each entry its offset from `table` (columns), which is -1 for one that is left
 * out, and the place of its value: `places` of the order, or its own place where that is null. */
EXPORT void KERNEL(sparse_program)(const int64_t *starts, const int32_t *found, const int32_t *places, int64_t rows, const int32_t *table,
                                   int64_t width, int64_t blocks, int64_t *segments, int32_t *offsets, int32_t *order, int threads) {
    memset(segments, 0, (size_t)(blocks * rows + 1) * sizeof *segments);
    const int several = team(threads, starts[rows]);
#pragma omp parallel for num_threads(several) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t block = 0, count = 0;
        for (int64_t k = starts[row]; k < starts[row + 1]; k++) {
            if (found[k] >= (block + 1) * width) {
                segments[block * rows + row + 1] = count;
                block = found[k] / width;
                count = 0;
            }
            count += table[found[k]] >= 0;
        }
        segments[block * rows + row + 1] = count;
    }
    for (int64_t i = 0; i < blocks * rows; i++) segments[i + 1] += segments[i];
#pragma omp parallel for num_threads(several) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t block = 0, next = segments[row], end = (block + 1) * width;
        for (int64_t k = starts[row]; k < starts[row + 1]; k++) {
            const int32_t column = found[k];
            if (column >= end) {
                block = column / width;
                end = (block + 1) * width;
                next = segments[block * rows + row];
            }
            if (table[column] < 0) continue;
            offsets[next] = table[column];
            order[next++] = places ? places[k] : (int32_t)k;
        }
    }
}

/* out[i] = from[order[i]] */
EXPORT void KERNEL(sparse_gather)(const float *from, const int32_t *order, int64_t count, float *out, int threads) {
#pragma omp parallel for num_threads(team(threads, count)) schedule(static)
    for (int64_t i = 0; i < count; i++) out[i] = from[order[i]];
}
