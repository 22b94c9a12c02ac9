/* Times, and how they are distributed. */

typedef struct {
  uint64_t *values;
  size_t size, capacity;
} times_t;

static void add(times_t *times, uint64_t value) {
  if (times->size == times->capacity) {
    times->capacity = times->capacity ? 2 * times->capacity : 4096;
    times->values = room_for(times->values, times->capacity * sizeof value);
  }
  times->values[times->size++] = value;
}

static int ascending(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

/* `"name": {...}` with nearest-rank quantiles in ms; the times are forgotten. */
static void print_times(const char *name, times_t *times) {
  static const double quantiles[] = {0.5, 0.9, 0.99, 1};
  double ms[4] = {0};
  if (times->size) qsort(times->values, times->size, sizeof *times->values, ascending);
  for (int i = 0; i < 4 && times->size; i++) {
    size_t rank = (size_t)((double)times->size * quantiles[i] + 0.999999);
    ms[i] = (double)times->values[rank ? rank - 1 : 0] / 1e6;
  }
  printf("\"%s\": {\"count\": %zu, \"p50_ms\": %.4f, \"p90_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f}", name,
         times->size, ms[0], ms[1], ms[2], ms[3]);
  times->size = 0;
}
