/* The command line of the load client: see load.c. */

enum { BY_POST, BY_FRAME, BY_NATS };
enum { MOST_ACKED = 100 }; /* in one frame */

static const char *path = "/ws?user_id={uid}", *post_path = "/", *match = "", *headers[16], *post_headers[16],
                  *subject;
static int port, publish_port, publish_by = BY_POST, is_verbatim, total = 1, most_in_flight = 64, first_uid = 1,
    ack_every, is_raw, needs_hello, headers_total, post_headers_total;
static double timeout_s = 60;
static char **tokens, *notice;
static int tokens_total;
static size_t notice_size;

static void read_tokens(const char *name) {
  size_t size;
  char *text = content_of(name, &size), *save = NULL;
  int capacity = 0;
  for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
    if (tokens_total == capacity) tokens = room_for(tokens, (size_t)(capacity += 4096) * sizeof *tokens);
    tokens[tokens_total++] = line;
  }
}

static int way_of(const char *name) {
  static const char *names[] = {"post", "frame", "nats"};
  for (int i = 0; i < 3; i++)
    if (!strcmp(name, names[i])) return i;
  die("--publish");
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
    case 'a': ack_every = 1; break;
    case 'k': ack_every = atoi(optarg); break;
    case 'h': needs_hello = 1; break;
    case 'r': is_raw = 1; break;
    case 'm': match = optarg; break;
    case 'N': notice = content_of(optarg, &notice_size); break;
    case 'o': post_path = optarg; break;
    case 'O': if (post_headers_total < 16) post_headers[post_headers_total++] = optarg; break;
    case 'w': publish_by = way_of(optarg); break;
    case 'W': publish_port = atoi(optarg); break;
    case 'v': is_verbatim = 1; break;
    case 's': subject = optarg; break;
    case 't': timeout_s = atof(optarg); break;
    case 'c': pin(atoi(optarg)); break;
    default: return 0;
  }
  return 1;
}

/* False for an option that there is not. */
static int take_options(int argc, char **argv) {
  static const struct option options[] = {
      {"port", 1, 0, 'p'},        {"connections", 1, 0, 'n'}, {"in-flight", 1, 0, 'f'}, {"path", 1, 0, 'P'},
      {"header", 1, 0, 'H'},      {"tokens", 1, 0, 'T'},      {"first-uid", 1, 0, 'u'}, {"ack", 0, 0, 'a'},
      {"hello", 0, 0, 'h'},       {"raw", 0, 0, 'r'},         {"match", 1, 0, 'm'},     {"notice", 1, 0, 'N'},
      {"post-path", 1, 0, 'o'},   {"post-header", 1, 0, 'O'}, {"timeout", 1, 0, 't'},   {"core", 1, 0, 'c'},
      {"publish", 1, 0, 'w'},     {"publish-port", 1, 0, 'W'}, {"verbatim", 0, 0, 'v'}, {"nats", 1, 0, 's'},
      {"ack-every", 1, 0, 'k'},   {0}};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
    if (!take_option(option)) return 0;
  if (publish_by == BY_NATS && !subject) die("--nats");
  if (ack_every < 0 || ack_every > MOST_ACKED) die("--ack-every");
  return 1;
}
