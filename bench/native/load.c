/* The load client: many WebSocket connections in one thread, driven by commands on stdin, one JSON line for each.
 *
 *     load --port P --connections N [--in-flight R] [--path T] [--header T]... [--tokens FILE] [--ack] [--hello]
 *          [--notice FILE --post-path T [--post-header T]...] [--raw] [--match TEXT] [--timeout S] [--core C]
 *
 * A template T may hold {uid} (1 to N, or from --first-uid) and {token} (that line of the file). It opens all
 * connections, --in-flight at a time, says how that went, and then obeys:
 *
 *     rounds COUNT GAP_MS   POST the notice (with {t}, the time in ns, and {n}, its number, filled in) and wait until
 *                           everybody has it; so many times, with a pause after each
 *     report                delivery times of all rounds since the last report
 *     expect COUNT          wait until everybody has got COUNT frames since the start, published by somebody else
 *     idle SECONDS          hold the connections, answering pings
 *
 * and ends with its input. A frame counts when its payload begins with --match. The first connection to get the k-th
 * frame sets what it is (a notice of our own must hold what was posted); it must be the k-th for all others too,
 * byte by byte: nothing lost, damaged, doubled or out of order, or the program ends with status 1 and a line that says
 * what was wrong. With --raw there is no handshake: frames from the first byte. With --ack every notice is acknowledged by
 * its message_id; with --hello a connection counts as open when its first frame has come. Times are CLOCK_MONOTONIC.
 */
#include "common.h"

enum { NEW, CONNECTING, UPGRADING, GREETING, OPEN };
enum { STDIN = -1, PUBLISHER = -2, MOST_FRAMES = 1 << 20, REQUEST_BYTES = 1 << 16 };

typedef struct {
  tail_t tail;
  int fd, state;
  uint32_t frames;
  uint64_t began_ns, upgraded_ns;
} connection_t;

typedef struct {
  char *payload;
  size_t size;
  uint64_t sent_ns;          /* the number behind "t": */
  char ack[256];
  size_t ack_size;
} reference_t;

typedef struct {
  uint64_t *values;
  size_t size, capacity;
} times_t;

static const char *path = "/ws?user_id={uid}", *post_path = "/", *match = "", *headers[16], *post_headers[16];
static int port, total = 1, most_in_flight = 64, first_uid = 1, is_acking, is_raw, needs_hello, headers_total,
    post_headers_total;
static double timeout_s = 60;
static char **tokens, *notice, buffer[BUFFER_BYTES];
static int tokens_total;

static connection_t *connections;
static reference_t *references;
static times_t deliveries, upgrades, hellos, answers;
static uint32_t references_total;
static int poller, opened, started, publisher = -1, published, answered, is_input_ready;
static uint64_t delivered, last_ns, pings, bytes_total, checksum = 14695981039346656037u, posted_ns;

/* ---- figures */

static void add(times_t *times, uint64_t value) {
  if (times->size == times->capacity) {
    times->capacity = times->capacity ? 2 * times->capacity : 4096;
    if (!(times->values = realloc(times->values, times->capacity * sizeof value))) die("realloc");
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

static void say(void) {
  printf("}\n");
  if (fflush(stdout)) die("stdout");
}

__attribute__((noreturn)) static void wrong(const char *what, const connection_t *it) {
  printf("{\"error\": \"%s\", \"connection\": %d, \"frames\": %u, \"opened\": %d, \"delivered\": %llu}\n", what,
         it ? (int)(it - connections) : -1, it ? it->frames : 0, opened, (unsigned long long)delivered);
  fflush(stdout);
  exit(1);
}

/* ---- requests */

static size_t put(char *out, size_t at, const char *text) {
  size_t size = strlen(text);
  if (at + size >= REQUEST_BYTES) die("request too long");
  memcpy(out + at, text, size + 1);
  return at + size;
}

static size_t put_number(char *out, size_t at, unsigned long long number) {
  char text[24];
  snprintf(text, sizeof text, "%llu", number);
  return put(out, at, text);
}

/* A template, filled in: {uid} and {token} for a connection, {t} and {n} for a notice. */
static size_t expand(char *out, size_t at, const char *template, int index, uint64_t t) {
  for (const char *p = template; *p;) {
    if (!strncmp(p, "{uid}", 5)) at = put_number(out, at, (unsigned)(first_uid + index)), p += 5;
    else if (!strncmp(p, "{token}", 7)) at = put(out, at, index < tokens_total ? tokens[index] : ""), p += 7;
    else if (!strncmp(p, "{t}", 3)) at = put_number(out, at, t), p += 3;
    else if (!strncmp(p, "{n}", 3)) at = put_number(out, at, (unsigned)published), p += 3;
    else if (at + 1 < REQUEST_BYTES) out[at++] = *p++;
    else die("request too long");
  }
  out[at] = 0;
  return at;
}

static void send_all(int fd, const char *bytes, size_t size) {
  if (send(fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size) wrong("the server does not read", NULL);
}

static void ask_for_upgrade(connection_t *it) {
  char request[REQUEST_BYTES];
  int index = (int)(it - connections);
  size_t at = expand(request, put(request, 0, "GET "), path, index, 0);
  at = put(request, at, " HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n");
  for (int i = 0; i < headers_total; i++) at = put(request, expand(request, at, headers[i], index, 0), "\r\n");
  send_all(it->fd, request, put(request, at, "\r\n"));
  it->state = UPGRADING;
}

static void publish(void) {
  static char body[REQUEST_BYTES], request[2 * REQUEST_BYTES];
  posted_ns = now_ns();
  size_t size = expand(body, 0, notice, 0, posted_ns);
  size_t at = expand(request, put(request, 0, "POST "), post_path, 0, 0);
  at = put(request, at, " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n");
  for (int i = 0; i < post_headers_total; i++) at = put(request, expand(request, at, post_headers[i], 0, 0), "\r\n");
  at = put(request, put_number(request, put(request, at, "Content-Length: "), size), "\r\n\r\n");
  memcpy(request + at, body, size);
  send_all(publisher, request, at + size);
  published++;
}

/* ---- frames */

static uint64_t number_behind(const char *name, const char *text, size_t size) {
  const char *found = memmem(text, size, name, strlen(name));
  return found ? strtoull(found + strlen(name), NULL, 10) : 0; /* payloads of references end with a zero */
}

static void prepare_ack(reference_t *it) {
  char text[200];
  const char *id = strstr(it->payload, "\"message_id\":\""), *end = id ? strchr(id + 14, '"') : NULL;
  if (!end || end - id > 128) wrong("a notice without message_id", NULL);
  int size = snprintf(text, sizeof text, "{\"type\":\"ack\",\"message_ids\":[\"%.*s\"]}", (int)(end - id - 14), id + 14);
  it->ack_size = make_frame(it->ack, TEXT, text, (size_t)size, 1);
}

/* The first of the k-th frames: what it is from now on. */
static reference_t *new_reference(const frame_t *frame) {
  if (references_total == MOST_FRAMES) die("too many frames");
  reference_t *it = &references[references_total++];
  if (!(it->payload = malloc(frame->size + 1))) die("malloc");
  memcpy(it->payload, frame->payload, frame->size);
  it->payload[frame->size] = 0;
  it->size = frame->size;
  it->sent_ns = number_behind("\"t\":", it->payload, it->size);
  for (size_t i = 0; i < it->size; i++) checksum = (checksum ^ (uint8_t)it->payload[i]) * 1099511628211u;
  if (notice && it->sent_ns != posted_ns) wrong("a notice that was not posted", NULL);
  if (is_acking) prepare_ack(it);
  return it;
}

static void take_notice(connection_t *it, const frame_t *frame, uint64_t now) {
  reference_t *same = it->frames < references_total ? &references[it->frames] : NULL;
  if (!same) same = new_reference(frame);
  if (frame->size != same->size || memcmp(frame->payload, same->payload, same->size)) wrong("damaged or out of order", it);
  it->frames++;
  delivered++;
  bytes_total += frame->length;
  last_ns = now;
  if (same->sent_ns) add(&deliveries, now - same->sent_ns);
  if (is_acking) send_all(it->fd, same->ack, same->ack_size);
}

static void take_frame(connection_t *it, const frame_t *frame, uint64_t now) {
  char answer[160];
  if (frame->first != (0x80 | frame->opcode)) wrong("fragments or reserved bits", it);
  if (frame->opcode == PING) {
    send_all(it->fd, answer, make_frame(answer, PONG, (char *)frame->payload, frame->size, 1));
    pings++;
  } else if (frame->opcode == CLOSE) {
    wrong("closed by the server", it);
  } else if (frame->size >= strlen(match) && !memcmp(frame->payload, match, strlen(match)) && it->state == OPEN) {
    take_notice(it, frame, now);
  }
  if (it->state == GREETING && frame->opcode <= 2) {
    add(&hellos, now - it->began_ns);
    it->state = OPEN;
    opened++;
  }
}

/* The 101; returns its size, 0 while it is not complete. */
static size_t take_answer(connection_t *it, char *bytes, size_t size, uint64_t now) {
  char *end = memmem(bytes, size, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = (size_t)(end + 4 - bytes);
  if (memcmp(bytes, "HTTP/1.1 101", 12) || !memmem(bytes, head, ACCEPT, sizeof ACCEPT - 1)) {
    fprintf(stderr, "%.*s\n", (int)(size < 500 ? size : 500), bytes);
    wrong("upgrade refused", it);
  }
  it->upgraded_ns = now;
  add(&upgrades, now - it->began_ns);
  it->state = needs_hello ? GREETING : OPEN;
  opened += !needs_hello;
  return head;
}

static void readable(connection_t *it) {
  size_t had = take_tail(&it->tail, buffer), at = 0;
  ssize_t got = recv(it->fd, buffer + had, sizeof buffer - had, MSG_DONTWAIT);
  if (got == 0 || (got < 0 && errno != EAGAIN)) wrong("the connection is gone", it);
  uint64_t now = now_ns();
  size_t size = had + (size_t)(got > 0 ? got : 0);
  frame_t frame;
  if (it->state == UPGRADING) at = take_answer(it, buffer, size, now);
  while (it->state > UPGRADING && at < size && parse_frame(buffer + at, size - at, &frame)) {
    take_frame(it, &frame, now);
    at += frame.length;
  }
  keep_tail(&it->tail, buffer + at, size - at);
}

static void publisher_readable(void) {
  static const char ok[] = "HTTP/1.1 200";
  ssize_t got = recv(publisher, buffer, sizeof buffer - 1, MSG_DONTWAIT);
  if (got <= 0) wrong("the publisher's connection is gone", NULL);
  buffer[got] = 0;
  if (strncmp(buffer, ok, sizeof ok - 1)) { /* short, and one at a time: it comes in one piece */
    fprintf(stderr, "%.500s\n", buffer);
    wrong("the notice was refused", NULL);
  }
  answered++;
  add(&answers, now_ns() - posted_ns);
}

/* ---- the loop */

static void watch(int fd, int who, uint32_t events, int operation) {
  struct epoll_event event = {.events = events, .data.u64 = (uint64_t)(int64_t)who};
  if (epoll_ctl(poller, operation, fd, &event)) die("epoll_ctl");
}

static int dial(int flags) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
  if (fd < 0) die("socket");
  no_delay(fd);
  if (connect(fd, (void *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
  return fd;
}

static void start_next(void) {
  connection_t *it = &connections[started];
  it->began_ns = now_ns();
  it->fd = dial(SOCK_NONBLOCK);
  it->state = CONNECTING;
  watch(it->fd, started++, EPOLLOUT, EPOLL_CTL_ADD);
}

static void connected(connection_t *it) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(it->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) wrong("cannot connect", it);
  watch(it->fd, (int)(it - connections), EPOLLIN, EPOLL_CTL_MOD);
  if (is_raw) it->state = OPEN, opened++, add(&upgrades, now_ns() - it->began_ns);
  else ask_for_upgrade(it);
}

static void pump(int wait_ms) {
  static struct epoll_event events[EVENTS];
  int count = epoll_wait(poller, events, EVENTS, wait_ms);
  if (count < 0 && errno != EINTR) die("epoll_wait");
  for (int i = 0; i < count; i++) {
    int who = (int)(int64_t)events[i].data.u64;
    if (who == STDIN) is_input_ready = 1, watch(0, STDIN, EPOLLIN, EPOLL_CTL_DEL);
    else if (who == PUBLISHER) publisher_readable();
    else if (connections[who].state == CONNECTING) connected(&connections[who]);
    else readable(&connections[who]);
  }
}

static void connect_all(void) {
  uint64_t began = now_ns(), cpu = cpu_ns(), ends = began + (uint64_t)(timeout_s * 1e9);
  while (opened < total) {
    while (started < total && started - opened < most_in_flight) start_next();
    pump(100);
    if (now_ns() > ends) wrong("not all could connect in time", NULL);
  }
  double took_s = (double)(now_ns() - began) / 1e9;
  printf("{\"connections\": %d, \"seconds\": %.6f, \"per_s\": %.1f, \"cpu\": %.4f, ", opened, took_s, opened / took_s,
         (double)(cpu_ns() - cpu) / 1e9 / took_s);
  print_times("upgrade", &upgrades);
  printf(", ");
  print_times("hello", &hellos);
  say();
}

static void pause_ms(double ms) {
  for (uint64_t now = now_ns(), ends = now + (uint64_t)(ms * 1e6); now < ends; now = now_ns())
    pump((int)((ends - now) / 1000000) + 1);
}

/* ---- commands */

static void rounds(int count, double gap_ms) {
  uint64_t wall = 0, cpu = 0;
  if (!notice) wrong("rounds need --notice", NULL);
  printf("{\"rounds\": %d, \"last_ms\": [", count);
  for (int i = 0; i < count; i++) {
    uint64_t goal = delivered + (uint64_t)total, cpu_before = cpu_ns();
    publish();
    uint64_t ends = posted_ns + (uint64_t)(timeout_s * 1e9);
    while ((delivered < goal || answered < published) && now_ns() < ends) pump(100);
    if (delivered != goal || answered < published) wrong("not everybody got the notice", NULL);
    cpu += cpu_ns() - cpu_before;
    wall += now_ns() - posted_ns;
    printf("%s%.4f", i ? ", " : "", (double)(last_ns - posted_ns) / 1e6);
    pause_ms(gap_ms);
  }
  printf("], \"frame_bytes\": %zu, \"wall_ms\": %.4f, \"cpu\": %.4f", references[references_total - 1].size,
         (double)wall / 1e6, (double)cpu / (double)wall);
  say();
}

static void expect(uint32_t count) {
  uint64_t goal = (uint64_t)count * (uint64_t)total, began = now_ns(), ends = began + (uint64_t)(timeout_s * 1e9);
  uint64_t cpu = cpu_ns();
  while (delivered < goal && now_ns() < ends) pump(100);
  for (int i = 0; i < total; i++)
    if (connections[i].frames != count) wrong("not everybody got every frame", &connections[i]);
  printf("{\"frames\": %llu, \"bytes\": %llu, \"checksum\": \"%016llx\", \"seconds\": %.6f, \"cpu_s\": %.6f",
         (unsigned long long)delivered, (unsigned long long)bytes_total, (unsigned long long)checksum,
         (double)(now_ns() - began) / 1e9, (double)(cpu_ns() - cpu) / 1e9);
  say();
}

static void idle(double seconds) {
  uint64_t before = pings, began = now_ns(), cpu = cpu_ns();
  pause_ms(seconds * 1000);
  double took_s = (double)(now_ns() - began) / 1e9;
  printf("{\"seconds\": %.3f, \"pings\": %llu, \"cpu\": %.4f", took_s, (unsigned long long)(pings - before),
         (double)(cpu_ns() - cpu) / 1e9 / took_s);
  say();
}

static void report(void) {
  printf("{");
  print_times("delivery", &deliveries);
  printf(", ");
  print_times("answer", &answers);
  say();
}

static void obey(const char *line) {
  double number = 0, gap_ms = 0;
  if (sscanf(line, "rounds %lf %lf", &number, &gap_ms) >= 1) rounds((int)number, gap_ms);
  else if (sscanf(line, "expect %lf", &number) == 1) expect((uint32_t)number);
  else if (sscanf(line, "idle %lf", &number) == 1) idle(number);
  else if (!strncmp(line, "report", 6)) report();
  else wrong("no such command", NULL);
}

/* Connections are served while nothing is said; ends with the input. Lines are short, and come whole. */
static void obey_all(void) {
  static char lines[4096];
  for (size_t had = 0;;) {
    watch(0, STDIN, EPOLLIN, EPOLL_CTL_ADD);
    for (is_input_ready = 0; !is_input_ready;) pump(-1);
    ssize_t got = read(0, lines + had, sizeof lines - 1 - had);
    if (got <= 0) return;
    had += (size_t)got;
    lines[had] = 0;
    char *at = lines;
    for (char *end; (end = strchr(at, '\n')); at = end + 1) {
      *end = 0;
      obey(at);
    }
    had = strlen(at);
    memmove(lines, at, had);
  }
}

/* ---- the command line */

static char *content_of(const char *name) {
  FILE *file = fopen(name, "rb");
  size_t size = 0, capacity = 1 << 16;
  char *text = malloc(capacity);
  if (!file || !text) die(name);
  for (size_t got; (got = fread(text + size, 1, capacity - size - 1, file)); size += got)
    if (capacity - size - got < 2 && !(text = realloc(text, capacity *= 2))) die("realloc");
  fclose(file);
  text[size] = 0;
  return text;
}

static void read_tokens(const char *name) {
  char *text = content_of(name), *save = NULL;
  int capacity = 0;
  for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
    if (tokens_total == capacity && !(tokens = realloc(tokens, (size_t)(capacity += 4096) * sizeof *tokens)))
      die("realloc");
    tokens[tokens_total++] = line;
  }
}

static int take_option(int option) {
  switch (option) {
    case 'p': port = atoi(optarg); break;
    case 'n': total = atoi(optarg); break;
    case 'f': most_in_flight = atoi(optarg); break;
    case 'P': path = optarg; break;
    case 'H': if (headers_total < 16) headers[headers_total++] = optarg; break;
    case 'T': read_tokens(optarg); break;
    case 'u': first_uid = atoi(optarg); break;
    case 'a': is_acking = 1; break;
    case 'h': needs_hello = 1; break;
    case 'r': is_raw = 1; break;
    case 'm': match = optarg; break;
    case 'N': notice = content_of(optarg); break;
    case 'o': post_path = optarg; break;
    case 'O': if (post_headers_total < 16) post_headers[post_headers_total++] = optarg; break;
    case 't': timeout_s = atof(optarg); break;
    case 'c': pin(atoi(optarg)); break;
    default: return 0;
  }
  return 1;
}

int main(int argc, char **argv) {
  static const struct option options[] = {
      {"port", 1, 0, 'p'},        {"connections", 1, 0, 'n'}, {"in-flight", 1, 0, 'f'}, {"path", 1, 0, 'P'},
      {"header", 1, 0, 'H'},      {"tokens", 1, 0, 'T'},      {"first-uid", 1, 0, 'u'}, {"ack", 0, 0, 'a'},
      {"hello", 0, 0, 'h'},       {"raw", 0, 0, 'r'},         {"match", 1, 0, 'm'},     {"notice", 1, 0, 'N'},
      {"post-path", 1, 0, 'o'},   {"post-header", 1, 0, 'O'}, {"timeout", 1, 0, 't'},   {"core", 1, 0, 'c'},
      {0}};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
    if (!take_option(option)) return 2;
  signal(SIGPIPE, SIG_IGN);
  allow_descriptors((unsigned)total + 64);
  connections = calloc((size_t)total, sizeof *connections);
  references = calloc(MOST_FRAMES, sizeof *references); /* untouched pages cost nothing */
  poller = epoll_create1(EPOLL_CLOEXEC);
  if (!connections || !references || poller < 0) die("start");
  connect_all();
  if (notice) watch(publisher = dial(0), PUBLISHER, EPOLLIN, EPOLL_CTL_ADD);
  obey_all();
  struct linger at_once = {1, 0}; /* no TIME_WAIT: the next benchmark needs the ports */
  for (int i = 0; i < total; i++) setsockopt(connections[i].fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  return 0;
}
