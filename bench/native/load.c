/* The load client: many WebSocket connections in one thread, driven by commands on stdin, one JSON line for each.
 *
 *     load --port P --connections N [--in-flight R] [--path T] [--header T]... [--tokens FILE] [--ack | --ack-every K]
 *          [--hello] [--notice FILE [--publish post|frame|nats] [--publish-port P] [--post-path T] [--post-header T]...
 *          [--verbatim]] [--raw] [--nats SUBJECT] [--match TEXT] [--timeout S] [--core C]
 *
 * A template T may hold {uid} (1 to N, or from --first-uid) and {token} (that line of the file). It opens all
 * connections, --in-flight at a time, says how that went, and then obeys:
 *
 *     rounds COUNT GAP_MS   publish the notice (with {t}, the time in ns, and {n}, its number, filled in) and wait
 *                           until everybody has it; so many times, with a pause after each
 *     burst COUNT           publish so many at once, and wait until everybody has all of them
 *     report                delivery times of all rounds since the last report
 *     expect COUNT          wait until everybody has got COUNT frames since the start, published by somebody else
 *     idle SECONDS          hold the connections, answering pings
 *
 * and ends with its input. A frame counts when its payload begins with --match. The first connection to get the k-th
 * frame sets what it is (a notice of our own must hold what was posted); it must be the k-th for all others too,
 * byte by byte: nothing lost, damaged, doubled or out of order, or the program ends with status 1 and a line that says
 * what was wrong. With --verbatim a notice must arrive as it was published. With --raw there is no handshake: frames
 * from the first byte. With --ack every notice is acknowledged by its message_id; with --ack-every K of them are in
 * one such frame. With --hello a connection counts as open when its first frame has come. Times are CLOCK_MONOTONIC.
 *
 * A notice is published by a POST (answered with 200, or 201 or 202), by a frame on a WebSocket of its own at the
 * --post-path, or by NATS's PUB over TCP. With --nats the connections speak NATS inside WebSocket frames and subscribe
 * to the subject, also that of PUB: a frame is then the payload of a message.
 */
#include "common.h"
#include "nats.h"
#include "times.h"
#include "load_options.h"
#include "load_requests.h"

enum { NEW, CONNECTING, UPGRADING, GREETING, OPEN };
enum { STDIN = -1, PUBLISHER = -2, MOST_FRAMES = 1 << 20 };

typedef struct {
  tail_t tail, stream; /* stream: of NATS, beyond the frames that are complete */
  int fd, state;
  uint32_t frames;
  uint64_t began_ns, upgraded_ns;
} connection_t;

typedef struct {
  char *payload;
  size_t size;
  uint64_t sent_ns;          /* the number behind "t": */
  char *ack; /* of this notice and those before it that are not acknowledged; NULL: later */
  size_t ack_size;
} reference_t;

typedef struct {
  uint64_t at_ns;
  char *body; /* kept with --verbatim */
  size_t size;
} post_t;

static char buffer[BUFFER_BYTES];
static connection_t *connections;
static reference_t *references;
static post_t *posts;
static tail_t publisher_tail;
static times_t deliveries, upgrades, hellos, answers;
static uint32_t references_total;
static int opened, started, publisher = -1, published, answered, is_input_ready;
static uint64_t delivered, last_ns, pings, bytes_total, checksum = 14695981039346656037u;

/* ---- figures */

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

static void send_all(int fd, const char *bytes, size_t size) {
  if (send(fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size) wrong("the server does not read", NULL);
}

static void ask_for_upgrade(connection_t *it) {
  char request[REQUEST_BYTES];
  send_all(it->fd, request, put_upgrade(request, path, (int)(it - connections)));
  it->state = UPGRADING;
}

static void keep_post(uint64_t at_ns, const char *body, size_t size) {
  if (published == MOST_FRAMES) die("too many notices");
  post_t *it = &posts[published++];
  *it = (post_t){.at_ns = at_ns, .size = size};
  if (!is_verbatim) return;
  if (!(it->body = malloc(size))) die("malloc");
  memcpy(it->body, body, size);
}

static void publish(void) {
  static char body[REQUEST_BYTES], request[2 * REQUEST_BYTES];
  uint64_t at_ns = now_ns();
  size_t size = expand(body, 0, notice, (values_t){.t = at_ns, .n = (unsigned)published});
  keep_post(at_ns, body, size);
  if (publish_by == BY_POST) size = put_post(request, body, size);
  else if (publish_by == BY_FRAME) size = make_frame(request, TEXT, body, size, 1);
  else size = put_pub(request, body, size);
  send_all(publisher, request, size);
}

/* ---- frames */

static uint64_t number_behind(const char *name, const char *text, size_t size) {
  const char *found = memmem(text, size, name, strlen(name));
  return found ? strtoull(found + strlen(name), NULL, 10) : 0; /* payloads of references end with a zero */
}

static void prepare_ack(reference_t *it) {
  static char text[200 * MOST_ACKED];
  if ((it - references + 1) % ack_every) return;
  int size = sprintf(text, "{\"type\":\"ack\",\"message_ids\":[");
  for (reference_t *one = it - ack_every + 1; one <= it; one++) {
    const char *id = strstr(one->payload, "\"message_id\":\""), *end = id ? strchr(id + 14, '"') : NULL;
    if (!end || end - id > 128) wrong("a notice without message_id", NULL);
    size += sprintf(text + size, "\"%.*s\"%s", (int)(end - id - 14), id + 14, one < it ? "," : "]}");
  }
  if (!(it->ack = malloc((size_t)size + 16))) die("malloc");
  it->ack_size = make_frame(it->ack, TEXT, text, (size_t)size, 1);
}

/* Is a reference what was published as the k-th? */
static void check_post(const reference_t *it) {
  int k = (int)(it - references);
  if (k >= published || it->sent_ns != posts[k].at_ns) wrong("a notice that was not published", NULL);
  if (is_verbatim && (it->size != posts[k].size || memcmp(it->payload, posts[k].body, it->size)))
    wrong("not what was published", NULL);
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
  if (notice) check_post(it);
  if (ack_every) prepare_ack(it);
  return it;
}

static void take_notice(connection_t *it, const frame_t *frame, uint64_t now) {
  reference_t *same = it->frames < references_total ? &references[it->frames] : NULL;
  if (!same) same = new_reference(frame);
  if (frame->size != same->size || memcmp(frame->payload, same->payload, same->size))
    wrong("damaged or out of order", it);
  it->frames++;
  delivered++;
  bytes_total += frame->length;
  last_ns = now;
  if (same->sent_ns) add(&deliveries, now - same->sent_ns);
  if (same->ack) send_all(it->fd, same->ack, same->ack_size);
}

static int is_notice(const connection_t *it, const frame_t *frame) {
  return it->state == OPEN && begins((char *)frame->payload, frame->size, match);
}

static void greeted(connection_t *it, uint64_t now) {
  if (it->state != GREETING) return;
  add(&hellos, now - it->began_ns);
  it->state = OPEN;
  opened++;
}

static void say_frame(connection_t *it, const char *text) {
  char frame[1024];
  send_all(it->fd, frame, make_frame(frame, TEXT, text, strlen(text), 1));
}

static void take_message(connection_t *it, const nats_t *message, uint64_t now) {
  frame_t frame = {(uint8_t *)message->payload, message->size, message->length, TEXT, 0x80 | TEXT, 0};
  if (message->what == NATS_PINGED) say_frame(it, NATS_PONG);
  if (message->what == NATS_PONGED) greeted(it, now);
  if (message->what == NATS_REFUSED) wrong("refused by NATS", it);
  if (message->what == NATS_MESSAGE && is_notice(it, &frame)) take_notice(it, &frame, now);
}

static void take_stream(connection_t *it, const frame_t *frame, uint64_t now) {
  static char stream[2 * BUFFER_BYTES];
  size_t had = take_tail(&it->stream, stream), size = had + frame->size, at = 0;
  if (size > sizeof stream) die("message too big");
  memcpy(stream + had, frame->payload, frame->size);
  for (nats_t message; at < size && parse_nats(stream + at, size - at, &message); at += message.length)
    take_message(it, &message, now);
  keep_tail(&it->stream, stream + at, size - at);
}

static void take_frame(connection_t *it, const frame_t *frame, uint64_t now) {
  char answer[160];
  if (frame->first != (0x80 | frame->opcode) || frame->is_masked) wrong("fragments, reserved bits or a mask", it);
  if (frame->opcode == PING) {
    send_all(it->fd, answer, make_frame(answer, PONG, (char *)frame->payload, frame->size, 1));
    pings++;
  } else if (frame->opcode == CLOSE) {
    wrong("closed by the server", it);
  } else if (subject) {
    take_stream(it, frame, now);
  } else {
    if (is_notice(it, frame)) take_notice(it, frame, now);
    if (frame->opcode <= 2) greeted(it, now);
  }
}

static void subscribe(connection_t *it) {
  char text[512];
  int size = snprintf(text, sizeof text, NATS_CONNECT "SUB %s 1\r\nPING\r\n", subject);
  if (size >= (int)sizeof text) die("--nats");
  say_frame(it, text);
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
  it->state = needs_hello || subject ? GREETING : OPEN;
  opened += it->state == OPEN;
  if (subject) subscribe(it);
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

/* ---- the publisher */

/* An answer to a POST; returns its size, 0 while it is not complete. */
static size_t take_accepted(char *bytes, size_t size) {
  size_t whole = answer_size(bytes, size);
  if (!whole) return 0;
  if (!begins(bytes, size, "HTTP/1.1 20") || bytes[11] > '2') {
    fprintf(stderr, "%.*s\n", (int)(size < 500 ? size : 500), bytes);
    wrong("the notice was refused", NULL);
  }
  if (answered == published) wrong("an answer to nothing", NULL);
  add(&answers, now_ns() - posts[answered++].at_ns);
  return whole;
}

/* What NATS says to a publisher. */
static size_t take_said(char *bytes, size_t size) {
  nats_t it;
  if (!parse_nats(bytes, size, &it)) return 0;
  if (it.what == NATS_PINGED) send_all(publisher, NATS_PONG, strlen(NATS_PONG));
  if (it.what == NATS_REFUSED) wrong("refused by NATS", NULL);
  return it.length;
}

/* What comes on the WebSocket of a publisher is not for it, but must not end it. */
static size_t take_aside(char *bytes, size_t size) {
  char answer[160];
  frame_t frame;
  if (!parse_frame(bytes, size, &frame)) return 0;
  if (frame.opcode == CLOSE) wrong("the publisher's connection is closed", NULL);
  if (frame.opcode == PING)
    send_all(publisher, answer, make_frame(answer, PONG, (char *)frame.payload, frame.size, 1));
  return frame.length;
}

/* Everything published was answered, where there are answers. */
static int is_answered(void) { return publish_by != BY_POST || answered == published; }

static void publisher_readable(void) {
  static size_t (*const takes[])(char *, size_t) = {[BY_POST] = take_accepted, [BY_FRAME] = take_aside,
                                                    [BY_NATS] = take_said};
  size_t had = take_tail(&publisher_tail, buffer), at = 0;
  ssize_t got = recv(publisher, buffer + had, sizeof buffer - had, MSG_DONTWAIT);
  if (got <= 0 && publish_by == BY_POST && is_answered()) {
    watch(publisher, PUBLISHER, 0, EPOLL_CTL_DEL);
    return;
  }
  if (got <= 0) wrong("the publisher's connection is gone", NULL);
  size_t size = had + (size_t)got;
  for (size_t took; at < size && (took = takes[publish_by](buffer + at, size - at)); at += took) continue;
  keep_tail(&publisher_tail, buffer + at, size - at);
}

/* Read until some text has come. */
static void await(int fd, const char *text) {
  size_t size = 0;
  while (!memmem(buffer, size, text, strlen(text))) {
    ssize_t got = recv(fd, buffer + size, sizeof buffer - size, 0);
    if (got <= 0) wrong("the publisher's connection is refused", NULL);
    size += (size_t)got;
  }
}

/* ---- the loop */

/* A POST has a new connection for each command: servers close one that says nothing for long. */
static void connect_publisher(void) {
  char request[REQUEST_BYTES];
  if (publisher >= 0 && publish_by != BY_POST) return;
  if (publisher >= 0) close(publisher);
  publisher = dial(publish_port ? publish_port : port, 0);
  if (publish_by == BY_FRAME) {
    send_all(publisher, request, put_upgrade(request, post_path, 0));
    await(publisher, ACCEPT);
  } else if (publish_by == BY_NATS) {
    send_all(publisher, NATS_CONNECT "PING\r\n", strlen(NATS_CONNECT "PING\r\n"));
    await(publisher, NATS_PONG);
  }
  watch(publisher, PUBLISHER, EPOLLIN, EPOLL_CTL_ADD);
}

static void start_next(void) {
  connection_t *it = &connections[started];
  it->began_ns = now_ns();
  it->fd = dial(port, SOCK_NONBLOCK);
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

/* Until everybody has what was published since `began`. */
static void wait_for_all(uint64_t goal, uint64_t began) {
  uint64_t ends = began + (uint64_t)(timeout_s * 1e9);
  while ((delivered < goal || !is_answered()) && now_ns() < ends) pump(100);
  if (delivered != goal || !is_answered()) wrong("not everybody got the notice", NULL);
}

static void print_work(uint64_t wall, uint64_t cpu) {
  printf("\"frame_bytes\": %zu, \"wall_ms\": %.4f, \"cpu\": %.4f", references[references_total - 1].size,
         (double)wall / 1e6, (double)cpu / (double)wall);
  say();
}

/* Nothing is printed before all went well: what went wrong has a line of its own. */
static void rounds(int count, double gap_ms) {
  static times_t last;
  uint64_t wall = 0, cpu = 0;
  connect_publisher();
  for (last.size = 0; last.size < (size_t)count;) {
    uint64_t goal = delivered + (uint64_t)total, cpu_before = cpu_ns();
    publish();
    uint64_t posted_ns = posts[published - 1].at_ns;
    wait_for_all(goal, posted_ns);
    cpu += cpu_ns() - cpu_before;
    wall += now_ns() - posted_ns;
    add(&last, last_ns - posted_ns);
    pause_ms(gap_ms);
  }
  printf("{\"rounds\": %d, \"last_ms\": [", count);
  for (int i = 0; i < count; i++) printf("%s%.4f", i ? ", " : "", (double)last.values[i] / 1e6);
  printf("], ");
  print_work(wall, cpu);
}

static void burst(int count) {
  connect_publisher();
  uint64_t goal = delivered + (uint64_t)count * (uint64_t)total, cpu_before = cpu_ns();
  int first = published;
  for (int i = 0; i < count; i++) publish();
  uint64_t began = posts[first].at_ns;
  wait_for_all(goal, began);
  printf("{\"broadcasts\": %d, \"last_ms\": %.4f, ", count, (double)(last_ns - began) / 1e6);
  print_work(now_ns() - began, cpu_ns() - cpu_before);
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
  int is_publishing = begins(line, strlen(line), "rounds") || begins(line, strlen(line), "burst");
  if (is_publishing && !notice) wrong("publishing needs --notice", NULL);
  if (sscanf(line, "rounds %lf %lf", &number, &gap_ms) >= 1) rounds((int)number, gap_ms);
  else if (sscanf(line, "burst %lf", &number) == 1) burst((int)number);
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

int main(int argc, char **argv) {
  if (!take_options(argc, argv)) return 2;
  signal(SIGPIPE, SIG_IGN);
  allow_descriptors((unsigned)total + 64);
  connections = calloc((size_t)total, sizeof *connections);
  references = calloc(MOST_FRAMES, sizeof *references); /* untouched pages cost nothing */
  posts = calloc(MOST_FRAMES, sizeof *posts);
  poller = epoll_create1(EPOLL_CLOEXEC);
  if (!connections || !references || !posts || poller < 0) die("start");
  connect_all();
  obey_all();
  for (int i = 0; i < total; i++) end_at_once(connections[i].fd);
  return 0;
}
