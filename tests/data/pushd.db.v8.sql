BEGIN TRANSACTION;
CREATE TABLE admin_user_online_status (
      user_id            INTEGER PRIMARY KEY,
      username           TEXT NOT NULL DEFAULT '',
      is_online          INTEGER NOT NULL DEFAULT 0,
      last_seen          INTEGER NOT NULL,
      online_time        INTEGER,
      offline_time       INTEGER,
      online_duration    INTEGER NOT NULL DEFAULT 0,
      connection_id      TEXT NOT NULL DEFAULT '',
      client_ip          TEXT NOT NULL DEFAULT '',
      user_agent         TEXT NOT NULL DEFAULT '',
      total_online_count INTEGER NOT NULL DEFAULT 0,
      total_online_time  INTEGER NOT NULL DEFAULT 0,
      created_at         INTEGER NOT NULL,
      updated_at         INTEGER NOT NULL
    );
INSERT INTO "admin_user_online_status" VALUES(1,'user1',1,1700000000000,1700000000000,NULL,0,'c1','10.0.0.1','Firefox',1,0,1700000000000,1700000000000);
INSERT INTO "admin_user_online_status" VALUES(2,'user2',0,1700000000050,1700000000005,1700000000050,45,'c2','','',1,45,1700000000005,1700000000050);
CREATE TABLE admin_user_receive_records (
      message_id      TEXT NOT NULL,
      user_id         INTEGER NOT NULL,
      username        TEXT NOT NULL DEFAULT '',
      user_role       INTEGER NOT NULL DEFAULT 0,
      is_online       INTEGER NOT NULL DEFAULT 0,
      is_received     INTEGER NOT NULL DEFAULT 0,
      received_at     INTEGER,
      is_read         INTEGER NOT NULL DEFAULT 0,
      read_at         INTEGER,
      is_confirmed    INTEGER NOT NULL DEFAULT 0,
      confirmed_at    INTEGER,
      device_type     TEXT NOT NULL DEFAULT '',
      platform        TEXT NOT NULL DEFAULT '',
      browser         TEXT NOT NULL DEFAULT '',
      client_ip       TEXT NOT NULL DEFAULT '',
      user_agent      TEXT NOT NULL DEFAULT '',
      connection_id   TEXT NOT NULL DEFAULT '',
      push_channel    TEXT NOT NULL DEFAULT 'websocket',
      delivery_status TEXT NOT NULL DEFAULT 'pending',
      retry_count     INTEGER NOT NULL DEFAULT 0,
      error_message   TEXT,
      created_at      INTEGER NOT NULL,
      updated_at      INTEGER NOT NULL,
      UNIQUE (message_id, user_id)
    );
INSERT INTO "admin_user_receive_records" VALUES('m-custom',1,'user1',0,1,1,1700000000017,0,NULL,0,NULL,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','delivered',0,NULL,1700000000010,1700000000017);
INSERT INTO "admin_user_receive_records" VALUES('m-custom',2,'user2',1,1,0,NULL,0,NULL,0,NULL,'mobile','iOS','Mobile Safari','2001:db8::2','Safari ü','c2','websocket','pending',0,NULL,1700000000010,1700000000010);
INSERT INTO "admin_user_receive_records" VALUES('m-custom',3,'user3',0,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','offline',0,NULL,1700000000010,1700000000010);
INSERT INTO "admin_user_receive_records" VALUES('m-all',1,'user1',1,1,1,1700000000021,1,1700000000520,0,NULL,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','delivered',0,NULL,1700000000020,1700000000520);
INSERT INTO "admin_user_receive_records" VALUES('m-all',2,'renamed',2,1,1,1700000000022,1,1700000000620,1,1700000000620,'mobile','iOS','Mobile Safari','2001:db8::2','Safari ü','c2','websocket','delivered',0,NULL,1700000000020,1700000000620);
INSERT INTO "admin_user_receive_records" VALUES('m-all',3,'user3',0,1,1,1700000000023,1,1700000000720,1,1703456000020,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','delivered',0,NULL,1700000000020,1703456000020);
INSERT INTO "admin_user_receive_records" VALUES('m-all',4,'user4',1,1,1,1700000000024,0,NULL,0,NULL,'mobile','iOS','Mobile Safari','2001:db8::2','Safari ü','c2','websocket','delivered',0,NULL,1700000000020,1700000000024);
INSERT INTO "admin_user_receive_records" VALUES('m-all',5,'user5',2,1,1,1700000000025,0,NULL,0,NULL,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','delivered',0,NULL,1700000000020,1700000000025);
INSERT INTO "admin_user_receive_records" VALUES('m-all',6,'user6',0,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','offline',0,NULL,1700000000020,1700000000020);
INSERT INTO "admin_user_receive_records" VALUES('m-all',7,'user7',0,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','offline',0,NULL,1700000000020,1700000000020);
INSERT INTO "admin_user_receive_records" VALUES('m-all',8,'user8',0,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','offline',0,NULL,1700000000020,1700000000020);
INSERT INTO "admin_user_receive_records" VALUES('m-role',2,'renamed',5,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','offline',0,NULL,1700000000030,1700000000030);
INSERT INTO "admin_user_receive_records" VALUES('m-role',5,'user5',5,0,1,1700003600030,0,NULL,0,NULL,'','','','','','','offline','delivered',0,NULL,1700000000030,1700003600030);
INSERT INTO "admin_user_receive_records" VALUES('m-admin',3,'user3',0,1,0,NULL,0,NULL,0,NULL,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','pending',0,NULL,1700000000040,1700000000040);
INSERT INTO "admin_user_receive_records" VALUES('m-admin',4,'user4',0,1,0,NULL,0,NULL,0,NULL,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','pending',0,NULL,1700000000040,1700000000040);
INSERT INTO "admin_user_receive_records" VALUES('m-expired',1,'user1',0,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','expired',0,NULL,1700000000050,1700000000100);
INSERT INTO "admin_user_receive_records" VALUES('m-expired',5,'user5',0,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','expired',0,NULL,1700000000050,1700000000100);
INSERT INTO "admin_user_receive_records" VALUES('m-guest',-5,'',0,1,1,1700000000086,0,NULL,0,NULL,'mobile','iOS','Mobile Safari','2001:db8::2','Safari ü','c2','websocket','delivered',0,NULL,1700000000085,1700000000086);
INSERT INTO "admin_user_receive_records" VALUES('m-old',1,'user1',0,1,1,1699740800002,0,NULL,0,NULL,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','delivered',0,NULL,1699740800000,1699740800002);
INSERT INTO "admin_user_receive_records" VALUES('m-old',2,'user2',1,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','offline',0,NULL,1699740800000,1699740800000);
INSERT INTO "admin_user_receive_records" VALUES('m-half',1,'user1',0,1,0,NULL,0,NULL,0,NULL,'desktop','Linux','Firefox','10.0.0.1','Mozilla/5.0 Firefox/140.0','c1','websocket','pending',0,NULL,1700000000097,1700000000097);
INSERT INTO "admin_user_receive_records" VALUES('m-half',2,'renamed',0,0,0,NULL,0,NULL,0,NULL,'','','','','','','offline','offline',0,NULL,1700000000097,1700000000097);
CREATE TABLE alive (id INTEGER PRIMARY KEY CHECK (id = 1), at_ms INTEGER NOT NULL);
INSERT INTO "alive" VALUES(1,1700000000100);
CREATE TABLE journal (
      seq         INTEGER PRIMARY KEY AUTOINCREMENT,
      accepted_ms INTEGER NOT NULL,
      settled     INTEGER NOT NULL DEFAULT 0,
      body        TEXT NOT NULL
    );
INSERT INTO "journal" VALUES(1,1700000000010,1,'{"seq":1,"message_id":"m-custom","content":"content of m-custom","target":{"kind":"custom","user_ids":[1,2,3,4],"exclude_ids":[4]},"accepted_ms":1700000000010,"type":"order.paid","data":{"a":[1,2.5,null,true,{"b":"é\u0000"}]},"idempotency_key":"key ☃","sender_id":7,"sender_name":"seven"}');
INSERT INTO "journal" VALUES(2,1700000000020,1,'{"seq":2,"message_id":"m-all","content":"Zeichen ü 😀 \"''","target":{"kind":"all"},"accepted_ms":1700000000020,"priority":3,"need_confirm":true}');
INSERT INTO "journal" VALUES(3,1700000000030,1,'{"seq":3,"message_id":"m-role","content":"content of m-role","target":{"kind":"role","roles":[1,2]},"accepted_ms":1700000000030,"priority":0}');
INSERT INTO "journal" VALUES(4,1700000000040,1,'{"seq":4,"message_id":"m-admin","content":"content of m-admin","target":{"kind":"admin","exclude_ids":[8]},"accepted_ms":1700000000040,"data":"text","expires_ms":1700432000000}');
INSERT INTO "journal" VALUES(5,1700000000050,1,'{"seq":5,"message_id":"m-expired","content":"content of m-expired","target":{"kind":"custom","user_ids":[1,5]},"accepted_ms":1700000000050,"expires_ms":1700000000090}');
INSERT INTO "journal" VALUES(6,1700000000060,1,'{"seq":6,"message_id":"m-deleted","content":"content of m-deleted","target":{"kind":"custom","user_ids":[1,6]},"accepted_ms":1700000000060,"data":[1]}');
INSERT INTO "journal" VALUES(7,1700000000070,1,'{"seq":7,"message_id":"m-gone","content":"content of m-gone","target":{"kind":"custom","user_ids":[2]},"accepted_ms":1700000000070}');
INSERT INTO "journal" VALUES(8,1700000000080,1,'{"seq":8,"message_id":"m-online","content":"content of m-online","target":{"kind":"online"},"accepted_ms":1700000000080,"priority":2}');
INSERT INTO "journal" VALUES(9,1700000000085,1,'{"seq":9,"message_id":"m-guest","content":"content of m-guest","target":{"kind":"custom","user_ids":[-5]},"accepted_ms":1700000000085,"sender_id":9007199254740993}');
INSERT INTO "journal" VALUES(10,1700000000095,1,'{"seq":10,"message_id":"m-old","content":"old","target":{"kind":"custom","user_ids":[1,2]},"accepted_ms":1700000000095,"is_resent":true}');
INSERT INTO "journal" VALUES(11,1700000000096,0,'{"seq":11,"message_id":"m-undone","content":"content of m-undone","target":{"kind":"custom","user_ids":[1,2]},"accepted_ms":1700000000096,"idempotency_key":"undone"}');
INSERT INTO "journal" VALUES(12,1700000000097,0,'{"seq":12,"message_id":"m-half","content":"content of m-half","target":{"kind":"all"},"accepted_ms":1700000000097,"priority":2}');
INSERT INTO "journal" VALUES(13,1700000000098,1,'{"seq":13,"message_id":"m-tail","content":"content of m-tail","target":{"kind":"custom","user_ids":[4]},"accepted_ms":1700000000098}');
CREATE TABLE mailbox (
      user_id   INTEGER NOT NULL,
      position  INTEGER NOT NULL,
      notice_id INTEGER NOT NULL,
      PRIMARY KEY (user_id, position)
    ) WITHOUT ROWID
    ;
INSERT INTO "mailbox" VALUES(3,1,1);
INSERT INTO "mailbox" VALUES(6,2,2);
INSERT INTO "mailbox" VALUES(7,2,2);
INSERT INTO "mailbox" VALUES(8,2,2);
INSERT INTO "mailbox" VALUES(2,3,3);
INSERT INTO "mailbox" VALUES(3,4,4);
INSERT INTO "mailbox" VALUES(1,5,5);
INSERT INTO "mailbox" VALUES(6,5,5);
INSERT INTO "mailbox" VALUES(2,6,6);
INSERT INTO "mailbox" VALUES(2,7,7);
INSERT INTO "mailbox" VALUES(4,8,8);
INSERT INTO "mailbox" VALUES(3,9,9);
INSERT INTO "mailbox" VALUES(4,9,9);
CREATE TABLE mailbox_notice (
      notice_id     INTEGER PRIMARY KEY,
      message_key   TEXT NOT NULL UNIQUE,
      last_position INTEGER NOT NULL,
      saved_at      INTEGER NOT NULL,
      expires_at    INTEGER,
      body          TEXT NOT NULL
    );
INSERT INTO "mailbox_notice" VALUES(1,'m-custom',1,1700000000013,NULL,'{"type":"order.paid","content":"content of m-custom","message_id":"m-custom","data":{"a":[1,2.5,null,true,{"b":"é\u0000"}]},"time":"2023-11-14 22:13:20","ts":1700000000010,"priority":1,"saved_at":1700000000013}');
INSERT INTO "mailbox_notice" VALUES(2,'m-all',2,1700000000023,NULL,'{"type":"system_notice","content":"Zeichen ü 😀 \"''","message_id":"m-all","time":"2023-11-14 22:13:20","ts":1700000000020,"priority":3,"need_confirm":true,"saved_at":1700000000023}');
INSERT INTO "mailbox_notice" VALUES(3,'m-role',3,1700000000033,NULL,'{"type":"system_notice","content":"content of m-role","message_id":"m-role","time":"2023-11-14 22:13:20","ts":1700000000030,"priority":0,"saved_at":1700000000033}');
INSERT INTO "mailbox_notice" VALUES(4,'m-admin',4,1700000000043,1700432000000,'{"type":"system_notice","content":"content of m-admin","message_id":"m-admin","data":"text","time":"2023-11-14 22:13:20","ts":1700000000040,"priority":1,"expires_ms":1700432000000,"saved_at":1700000000043}');
INSERT INTO "mailbox_notice" VALUES(5,'m-deleted',5,1700000000063,NULL,'{"type":"system_notice","content":"content of m-deleted","message_id":"m-deleted","data":[1],"time":"2023-11-14 22:13:20","ts":1700000000060,"priority":1,"saved_at":1700000000063}');
INSERT INTO "mailbox_notice" VALUES(6,'m-old',6,1700000000095,NULL,'{"type":"system_notice","content":"old","message_id":"m-old","time":"2023-11-14 22:13:20","ts":1699740800000,"priority":1,"need_confirm":true,"saved_at":1700000000095}');
INSERT INTO "mailbox_notice" VALUES(7,'m-half',7,1700000000100,NULL,'{"type":"system_notice","content":"content of m-half","message_id":"m-half","time":"2023-11-14 22:13:20","ts":1700000000097,"priority":2,"saved_at":1700000000100}');
INSERT INTO "mailbox_notice" VALUES(8,'#8',8,1700000000099,NULL,'{"type":"theirs","content":"no id","ts":1700000000055,"saved_at":1700000000099}');
INSERT INTO "mailbox_notice" VALUES(9,'m-foreign',9,1700000000099,NULL,'{"type":"theirs","content":"foreign","message_id":"m-foreign","data":{"x":1},"ts":1700000000056,"priority":3,"saved_at":1700000000099}');
CREATE TABLE outbox (
      position INTEGER PRIMARY KEY AUTOINCREMENT,
      writer TEXT NOT NULL,
      body BLOB NOT NULL
    );
INSERT INTO "outbox" VALUES(2,'records',X'7365636F6E64');
INSERT INTO "outbox" VALUES(3,'status',X'7468697264');
CREATE TABLE push_records (
      message_id      TEXT PRIMARY KEY,
      content         TEXT NOT NULL,
      message_type    TEXT NOT NULL,
      target          TEXT NOT NULL,
      target_user_ids TEXT,
      target_roles    TEXT,
      status          TEXT NOT NULL,
      success         INTEGER NOT NULL DEFAULT 1,
      error           TEXT,
      push_time       INTEGER NOT NULL,
      expires_at      INTEGER,
      sender_id       INTEGER NOT NULL DEFAULT 0,
      sender_name     TEXT NOT NULL DEFAULT '',
      priority        INTEGER NOT NULL DEFAULT 1,
      need_confirm    INTEGER NOT NULL DEFAULT 0,
      extra_data      TEXT,
      total_count     INTEGER NOT NULL DEFAULT 0,
      online_count    INTEGER NOT NULL DEFAULT 0,
      created_at      INTEGER NOT NULL,
      updated_at      INTEGER NOT NULL
    , recipients_count TEXT NOT NULL DEFAULT '');
INSERT INTO "push_records" VALUES('m-custom','content of m-custom','order.paid','custom','[1,2,3,4]',NULL,'success',1,NULL,1700000000010,NULL,7,'seven',1,0,'{"a":[1,2.5,null,true,{"b":"é\u0000"}]}',3,1,1700000000010,1700000000000,'3_users');
INSERT INTO "push_records" VALUES('m-all','Zeichen ü 😀 "''','system_notice','all',NULL,NULL,'success',1,NULL,1700000000020,NULL,0,'',3,1,NULL,8,5,1700000000020,1700000000000,'all_users');
INSERT INTO "push_records" VALUES('m-role','content of m-role','system_notice','role',NULL,'[1,2]','success',1,NULL,1700000000030,NULL,0,'',0,0,NULL,2,0,1700000000030,1700000000000,'role_users');
INSERT INTO "push_records" VALUES('m-admin','content of m-admin','system_notice','admin',NULL,NULL,'success',1,NULL,1700000000040,1700432000000,0,'',1,0,'"text"',2,2,1700000000040,1700000000000,'all_admins');
INSERT INTO "push_records" VALUES('m-expired','content of m-expired','system_notice','custom','[1,5]',NULL,'expired',1,NULL,1700000000050,1700000000090,0,'',1,0,NULL,2,0,1700000000050,1700000000000,'2_users');
INSERT INTO "push_records" VALUES('m-online','content of m-online','system_notice','online',NULL,NULL,'failed',0,NULL,1700000000080,NULL,0,'',2,0,NULL,0,0,1700000000080,1700000000000,'online_users');
INSERT INTO "push_records" VALUES('m-guest','content of m-guest','system_notice','custom','[-5]',NULL,'success',1,NULL,1700000000085,NULL,9007199254740993,'',1,0,NULL,1,1,1700000000085,1700000000000,'1_users');
INSERT INTO "push_records" VALUES('m-old','old','system_notice','custom','[1,2]',NULL,'success',1,NULL,1699740800000,NULL,0,'',1,1,NULL,2,1,1699740800000,1700000000000,'2_users');
INSERT INTO "push_records" VALUES('m-half','content of m-half','system_notice','all',NULL,NULL,'success',1,NULL,1700000000097,NULL,0,'',2,0,NULL,3,1,1700000000097,1700000000000,'all_users');
CREATE TABLE receive_counts (
      created_at      INTEGER NOT NULL,
      message_id      TEXT NOT NULL,
      is_online       INTEGER NOT NULL,
      is_received     INTEGER NOT NULL,
      is_read         INTEGER NOT NULL,
      is_confirmed    INTEGER NOT NULL,
      delivery_status TEXT NOT NULL,
      push_channel    TEXT NOT NULL,
      total           INTEGER NOT NULL,
      PRIMARY KEY (created_at, message_id, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
    ) WITHOUT ROWID
    ;
INSERT INTO "receive_counts" VALUES(1699740800000,'m-old',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_counts" VALUES(1699740800000,'m-old',1,1,0,0,'delivered','websocket',1);
INSERT INTO "receive_counts" VALUES(1700000000010,'m-custom',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_counts" VALUES(1700000000010,'m-custom',1,0,0,0,'pending','websocket',1);
INSERT INTO "receive_counts" VALUES(1700000000010,'m-custom',1,1,0,0,'delivered','websocket',1);
INSERT INTO "receive_counts" VALUES(1700000000020,'m-all',0,0,0,0,'offline','offline',3);
INSERT INTO "receive_counts" VALUES(1700000000020,'m-all',1,1,0,0,'delivered','websocket',2);
INSERT INTO "receive_counts" VALUES(1700000000020,'m-all',1,1,1,0,'delivered','websocket',1);
INSERT INTO "receive_counts" VALUES(1700000000020,'m-all',1,1,1,1,'delivered','websocket',2);
INSERT INTO "receive_counts" VALUES(1700000000030,'m-role',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_counts" VALUES(1700000000030,'m-role',0,1,0,0,'delivered','offline',1);
INSERT INTO "receive_counts" VALUES(1700000000040,'m-admin',1,0,0,0,'pending','websocket',2);
INSERT INTO "receive_counts" VALUES(1700000000050,'m-expired',0,0,0,0,'expired','offline',2);
INSERT INTO "receive_counts" VALUES(1700000000085,'m-guest',1,1,0,0,'delivered','websocket',1);
INSERT INTO "receive_counts" VALUES(1700000000097,'m-half',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_counts" VALUES(1700000000097,'m-half',1,0,0,0,'pending','websocket',1);
CREATE TABLE receive_names (
      username TEXT NOT NULL,
      user_id  INTEGER NOT NULL,
      folded   TEXT NOT NULL GENERATED ALWAYS AS (lower(username)) STORED,
      PRIMARY KEY (user_id, username)
    ) WITHOUT ROWID
    ;
INSERT INTO "receive_names" VALUES('',-5);
INSERT INTO "receive_names" VALUES('renamed',2);
INSERT INTO "receive_names" VALUES('user1',1);
INSERT INTO "receive_names" VALUES('user2',2);
INSERT INTO "receive_names" VALUES('user3',3);
INSERT INTO "receive_names" VALUES('user4',4);
INSERT INTO "receive_names" VALUES('user5',5);
INSERT INTO "receive_names" VALUES('user6',6);
INSERT INTO "receive_names" VALUES('user7',7);
INSERT INTO "receive_names" VALUES('user8',8);
CREATE TABLE receive_totals (
      user_id         INTEGER NOT NULL,
      username        TEXT NOT NULL,
      is_online       INTEGER NOT NULL,
      is_received     INTEGER NOT NULL,
      is_read         INTEGER NOT NULL,
      is_confirmed    INTEGER NOT NULL,
      delivery_status TEXT NOT NULL,
      push_channel    TEXT NOT NULL,
      total           INTEGER NOT NULL,
      PRIMARY KEY (user_id, username, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
    ) WITHOUT ROWID
    ;
INSERT INTO "receive_totals" VALUES(-5,'',1,1,0,0,'delivered','websocket',1);
INSERT INTO "receive_totals" VALUES(1,'user1',0,0,0,0,'expired','offline',1);
INSERT INTO "receive_totals" VALUES(1,'user1',1,0,0,0,'pending','websocket',1);
INSERT INTO "receive_totals" VALUES(1,'user1',1,1,0,0,'delivered','websocket',2);
INSERT INTO "receive_totals" VALUES(1,'user1',1,1,1,0,'delivered','websocket',1);
INSERT INTO "receive_totals" VALUES(2,'renamed',0,0,0,0,'offline','offline',2);
INSERT INTO "receive_totals" VALUES(2,'renamed',1,1,1,1,'delivered','websocket',1);
INSERT INTO "receive_totals" VALUES(2,'user2',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_totals" VALUES(2,'user2',1,0,0,0,'pending','websocket',1);
INSERT INTO "receive_totals" VALUES(3,'user3',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_totals" VALUES(3,'user3',1,0,0,0,'pending','websocket',1);
INSERT INTO "receive_totals" VALUES(3,'user3',1,1,1,1,'delivered','websocket',1);
INSERT INTO "receive_totals" VALUES(4,'user4',1,0,0,0,'pending','websocket',1);
INSERT INTO "receive_totals" VALUES(4,'user4',1,1,0,0,'delivered','websocket',1);
INSERT INTO "receive_totals" VALUES(5,'user5',0,0,0,0,'expired','offline',1);
INSERT INTO "receive_totals" VALUES(5,'user5',0,1,0,0,'delivered','offline',1);
INSERT INTO "receive_totals" VALUES(5,'user5',1,1,0,0,'delivered','websocket',1);
INSERT INTO "receive_totals" VALUES(6,'user6',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_totals" VALUES(7,'user7',0,0,0,0,'offline','offline',1);
INSERT INTO "receive_totals" VALUES(8,'user8',0,0,0,0,'offline','offline',1);
CREATE TABLE set_aside (
      id        INTEGER PRIMARY KEY AUTOINCREMENT,
      kind      TEXT NOT NULL,
      at_ms     INTEGER NOT NULL,
      cause     TEXT NOT NULL,
      is_wanted INTEGER NOT NULL DEFAULT 0,
      size      INTEGER NOT NULL,
      body      BLOB NOT NULL
    );
INSERT INTO "set_aside" VALUES(1,'records',1700000000000,'ValueError: ü',0,2,X'0102');
INSERT INTO "set_aside" VALUES(2,'mailbox',1700000000000,'TypeError',1,2,X'7B7D');
CREATE TABLE user (
      id        INTEGER PRIMARY KEY,
      username  TEXT NOT NULL DEFAULT '',
      user_type INTEGER NOT NULL DEFAULT 0
    , is_imported INTEGER NOT NULL DEFAULT 0, token_issued_at INTEGER);
INSERT INTO "user" VALUES(1,'user1',1,1,NULL);
INSERT INTO "user" VALUES(2,'user2',2,1,NULL);
INSERT INTO "user" VALUES(3,'user3',0,1,NULL);
INSERT INTO "user" VALUES(4,'user4',1,1,NULL);
INSERT INTO "user" VALUES(5,'user5',2,1,NULL);
INSERT INTO "user" VALUES(6,'user6',0,1,NULL);
INSERT INTO "user" VALUES(7,'seven',2,0,1699999999000);
INSERT INTO "user" VALUES(8,'acht',-1,0,0);
CREATE INDEX journal_unsettled ON journal (seq) WHERE settled = 0;
CREATE INDEX journal_settled ON journal (accepted_ms) WHERE settled = 1;
CREATE INDEX mailbox_notice_position ON mailbox_notice (last_position);
CREATE INDEX mailbox_notice_saved ON mailbox_notice (saved_at);
CREATE INDEX mailbox_notice_expires ON mailbox_notice (expires_at) WHERE expires_at IS NOT NULL;
CREATE UNIQUE INDEX mailbox_once ON mailbox (notice_id, user_id);
CREATE TRIGGER mailbox_orphan AFTER DELETE ON mailbox BEGIN
      DELETE FROM mailbox_notice
       WHERE notice_id = OLD.notice_id
         AND NOT EXISTS (SELECT 1 FROM mailbox WHERE notice_id = OLD.notice_id);
    END;
CREATE INDEX user_role ON user (user_type, id);
CREATE INDEX online_status_seen ON admin_user_online_status (is_online, last_seen DESC);
CREATE INDEX receive_counts_message ON receive_counts (message_id);
CREATE TRIGGER receive_counts_empty AFTER UPDATE OF total ON receive_counts WHEN NEW.total = 0 BEGIN
      DELETE FROM receive_counts WHERE (receive_counts.created_at, receive_counts.message_id, receive_counts.is_online, receive_counts.is_received, receive_counts.is_read, receive_counts.is_confirmed, receive_counts.delivery_status, receive_counts.push_channel) = (NEW.created_at, NEW.message_id, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel);
    END;
CREATE INDEX receive_records_created ON admin_user_receive_records (created_at, message_id, user_id);
CREATE INDEX receive_records_received ON admin_user_receive_records (received_at, user_id, created_at, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
         WHERE received_at IS NOT NULL
        ;
CREATE INDEX receive_records_read ON admin_user_receive_records (read_at, user_id, created_at, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
         WHERE read_at IS NOT NULL
        ;
CREATE INDEX receive_records_confirmed ON admin_user_receive_records (confirmed_at, user_id, created_at, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
         WHERE confirmed_at IS NOT NULL
        ;
CREATE INDEX push_records_time ON push_records (push_time, message_id, success, total_count);
CREATE INDEX push_records_created ON push_records (created_at, push_time, message_id);
CREATE INDEX push_records_priority ON push_records (priority, push_time, message_id);
CREATE INDEX push_records_type ON push_records (message_type, push_time, message_id);
CREATE INDEX push_records_status ON push_records (status, push_time, message_id);
CREATE INDEX push_records_total ON push_records (total_count, push_time, message_id);
CREATE INDEX push_records_sender ON push_records (sender_id, push_time, message_id);
CREATE INDEX push_records_expires ON push_records (expires_at, message_id) WHERE expires_at IS NOT NULL;
CREATE INDEX outbox_writer ON outbox (writer, position);
CREATE TRIGGER receive_records_added AFTER INSERT ON admin_user_receive_records BEGIN
      
    INSERT INTO receive_counts (created_at, message_id, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel, total) VALUES (NEW.created_at, NEW.message_id, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel, +1)
        ON CONFLICT DO UPDATE SET total = total + +1;
     
  INSERT INTO receive_totals (user_id, username, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel, total) VALUES (NEW.user_id, NEW.username, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel, 1)
      ON CONFLICT DO UPDATE SET total = total + 1;

    END;
CREATE TRIGGER receive_records_changed AFTER UPDATE OF created_at, message_id, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel ON admin_user_receive_records
      WHEN (OLD.created_at, OLD.message_id, OLD.is_online, OLD.is_received, OLD.is_read, OLD.is_confirmed, OLD.delivery_status, OLD.push_channel) IS NOT (NEW.created_at, NEW.message_id, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel)
    BEGIN
      
  UPDATE receive_counts SET total = total - 1 WHERE created_at = OLD.created_at AND message_id = OLD.message_id AND is_online = OLD.is_online AND is_received = OLD.is_received AND is_read = OLD.is_read AND is_confirmed = OLD.is_confirmed AND delivery_status = OLD.delivery_status AND push_channel = OLD.push_channel;
 
    INSERT INTO receive_counts (created_at, message_id, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel, total) VALUES (NEW.created_at, NEW.message_id, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel, +1)
        ON CONFLICT DO UPDATE SET total = total + +1;
     
  INSERT INTO receive_totals (user_id, username, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel, total) VALUES (NEW.user_id, NEW.username, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel, 1)
      ON CONFLICT DO UPDATE SET total = total + 1;
 
  UPDATE receive_totals SET total = total - 1 WHERE user_id = OLD.user_id AND username = OLD.username AND is_online = OLD.is_online AND is_received = OLD.is_received AND is_read = OLD.is_read AND is_confirmed = OLD.is_confirmed AND delivery_status = OLD.delivery_status AND push_channel = OLD.push_channel;

    END;
CREATE TRIGGER receive_records_renamed AFTER UPDATE OF username ON admin_user_receive_records
      WHEN OLD.username <> NEW.username AND (OLD.created_at, OLD.message_id, OLD.is_online, OLD.is_received, OLD.is_read, OLD.is_confirmed, OLD.delivery_status, OLD.push_channel) IS (NEW.created_at, NEW.message_id, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel)
    BEGIN
      
  INSERT INTO receive_totals (user_id, username, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel, total) VALUES (NEW.user_id, NEW.username, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel, 1)
      ON CONFLICT DO UPDATE SET total = total + 1;
 
  UPDATE receive_totals SET total = total - 1 WHERE user_id = OLD.user_id AND username = OLD.username AND is_online = OLD.is_online AND is_received = OLD.is_received AND is_read = OLD.is_read AND is_confirmed = OLD.is_confirmed AND delivery_status = OLD.delivery_status AND push_channel = OLD.push_channel;

    END;
CREATE TRIGGER receive_records_dropped AFTER DELETE ON admin_user_receive_records BEGIN
      
    INSERT INTO receive_counts (created_at, message_id, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel, total) VALUES (OLD.created_at, OLD.message_id, OLD.is_online, OLD.is_received, OLD.is_read, OLD.is_confirmed, OLD.delivery_status, OLD.push_channel, -1)
        ON CONFLICT DO UPDATE SET total = total + -1;
     
  UPDATE receive_totals SET total = total - 1 WHERE user_id = OLD.user_id AND username = OLD.username AND is_online = OLD.is_online AND is_received = OLD.is_received AND is_read = OLD.is_read AND is_confirmed = OLD.is_confirmed AND delivery_status = OLD.delivery_status AND push_channel = OLD.push_channel;

    END;
CREATE TRIGGER receive_totals_added AFTER INSERT ON receive_totals BEGIN 
  INSERT INTO receive_names (username, user_id) VALUES (NEW.username, NEW.user_id) ON CONFLICT DO NOTHING;
 END;
CREATE TRIGGER receive_totals_empty AFTER UPDATE OF total ON receive_totals WHEN NEW.total = 0 BEGIN
      DELETE FROM receive_totals WHERE (receive_totals.user_id, receive_totals.username, receive_totals.is_online, receive_totals.is_received, receive_totals.is_read, receive_totals.is_confirmed, receive_totals.delivery_status, receive_totals.push_channel) = (NEW.user_id, NEW.username, NEW.is_online, NEW.is_received, NEW.is_read, NEW.is_confirmed, NEW.delivery_status, NEW.push_channel);
      DELETE FROM receive_names
       WHERE username = OLD.username AND user_id = OLD.user_id
         AND NOT EXISTS (SELECT 1 FROM receive_totals WHERE user_id = OLD.user_id AND username = OLD.username);
    END;
CREATE INDEX receive_records_state ON admin_user_receive_records (created_at, message_id, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel, user_id);
CREATE UNIQUE INDEX receive_names_username ON receive_names (username, user_id, folded);
CREATE INDEX receive_records_user
        ON admin_user_receive_records (user_id, created_at DESC, received_at, username, is_online, is_received, is_read, is_confirmed, delivery_status, push_channel)
    ;
CREATE INDEX set_aside_wanted ON set_aside (id) WHERE is_wanted = 1;
CREATE INDEX set_aside_kind ON set_aside (kind, size);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('journal',13);
INSERT INTO "sqlite_sequence" VALUES('outbox',3);
INSERT INTO "sqlite_sequence" VALUES('set_aside',2);
COMMIT;
PRAGMA application_id = 1886745448;
PRAGMA user_version = 8;
