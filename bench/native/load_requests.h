/* What the load client writes: upgrades and publishes, from their templates. */

enum { REQUEST_BYTES = 1 << 16 };

/* What a template's names stand for: {uid} and {token} of a connection, {t} and {n} of a notice. */
typedef struct {
  int index;
  uint64_t t;
  unsigned n;
} values_t;

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

static size_t expand(char *out, size_t at, const char *template, values_t its) {
  for (const char *p = template; *p;) {
    if (!strncmp(p, "{uid}", 5)) at = put_number(out, at, (unsigned)(first_uid + its.index)), p += 5;
    else if (!strncmp(p, "{token}", 7)) at = put(out, at, its.index < tokens_total ? tokens[its.index] : ""), p += 7;
    else if (!strncmp(p, "{t}", 3)) at = put_number(out, at, its.t), p += 3;
    else if (!strncmp(p, "{n}", 3)) at = put_number(out, at, its.n), p += 3;
    else if (at + 1 < REQUEST_BYTES) out[at++] = *p++;
    else die("request too long");
  }
  out[at] = 0;
  return at;
}

/* An upgrade; returns its size. */
static size_t put_upgrade(char *request, const char *to, int index) {
  values_t its = {.index = index};
  size_t at = expand(request, put(request, 0, "GET "), to, its);
  at = put(request, at, " HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\n");
  for (int i = 0; i < headers_total; i++) at = put(request, expand(request, at, headers[i], its), "\r\n");
  return put(request, at, "\r\n");
}

static size_t put_post(char *request, const char *body, size_t size) {
  values_t none = {0};
  size_t at = expand(request, put(request, 0, "POST "), post_path, none);
  at = put(request, at, " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n");
  for (int i = 0; i < post_headers_total; i++)
    at = put(request, expand(request, at, post_headers[i], none), "\r\n");
  at = put(request, put_number(request, put(request, at, "Content-Length: "), size), "\r\n\r\n");
  memcpy(request + at, body, size);
  return at + size;
}

static size_t put_pub(char *request, const char *body, size_t size) {
  size_t at = put(request, put(request, put(request, 0, "PUB "), subject), " ");
  at = put(request, put_number(request, at, size), "\r\n");
  memcpy(request + at, body, size);
  memcpy(request + at + size, "\r\n", 2);
  return at + size + 2;
}
