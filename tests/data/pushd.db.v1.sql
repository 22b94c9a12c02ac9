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
    );
INSERT INTO "push_records" VALUES('m-custom','content of m-custom','order.paid','custom','[1,2,3,4]',NULL,'success',1,NULL,1700000000010,NULL,7,'seven',1,0,'{"a":[1,2.5,null,true,{"b":"é\u0000"}]}',3,1,1700000000010,1700000000000);
INSERT INTO "push_records" VALUES('m-all','Zeichen ü 😀 "''','system_notice','all',NULL,NULL,'success',1,NULL,1700000000020,NULL,0,'',3,1,NULL,8,5,1700000000020,1700000000000);
INSERT INTO "push_records" VALUES('m-role','content of m-role','system_notice','role',NULL,'[1,2]','success',1,NULL,1700000000030,NULL,0,'',0,0,NULL,2,0,1700000000030,1700000000000);
INSERT INTO "push_records" VALUES('m-admin','content of m-admin','system_notice','admin',NULL,NULL,'success',1,NULL,1700000000040,1700432000000,0,'',1,0,'"text"',2,2,1700000000040,1700000000000);
INSERT INTO "push_records" VALUES('m-expired','content of m-expired','system_notice','custom','[1,5]',NULL,'expired',1,NULL,1700000000050,1700000000090,0,'',1,0,NULL,2,0,1700000000050,1700000000000);
INSERT INTO "push_records" VALUES('m-online','content of m-online','system_notice','online',NULL,NULL,'failed',0,NULL,1700000000080,NULL,0,'',2,0,NULL,0,0,1700000000080,1700000000000);
INSERT INTO "push_records" VALUES('m-guest','content of m-guest','system_notice','custom','[-5]',NULL,'success',1,NULL,1700000000085,NULL,9007199254740993,'',1,0,NULL,1,1,1700000000085,1700000000000);
INSERT INTO "push_records" VALUES('m-old','old','system_notice','custom','[1,2]',NULL,'success',1,NULL,1699740800000,NULL,0,'',1,1,NULL,2,1,1699740800000,1700000000000);
INSERT INTO "push_records" VALUES('m-half','content of m-half','system_notice','all',NULL,NULL,'success',1,NULL,1700000000097,NULL,0,'',2,0,NULL,3,1,1700000000097,1700000000000);
CREATE TABLE user (
      id        INTEGER PRIMARY KEY,
      username  TEXT NOT NULL DEFAULT '',
      user_type INTEGER NOT NULL DEFAULT 0
    );
INSERT INTO "user" VALUES(1,'user1',1);
INSERT INTO "user" VALUES(2,'user2',2);
INSERT INTO "user" VALUES(3,'user3',0);
INSERT INTO "user" VALUES(4,'user4',1);
INSERT INTO "user" VALUES(5,'user5',2);
INSERT INTO "user" VALUES(6,'user6',0);
INSERT INTO "user" VALUES(7,'seven',2);
INSERT INTO "user" VALUES(8,'acht',-1);
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
CREATE INDEX push_records_time ON push_records (push_time DESC);
CREATE INDEX push_records_created ON push_records (created_at);
CREATE INDEX receive_records_user ON admin_user_receive_records (user_id, created_at DESC);
CREATE INDEX receive_records_status ON admin_user_receive_records (is_online, delivery_status);
CREATE INDEX receive_records_created ON admin_user_receive_records (created_at);
CREATE INDEX receive_records_unread ON admin_user_receive_records (user_id)
     WHERE is_read = 0 AND delivery_status <> 'expired'
    ;
CREATE INDEX user_role ON user (user_type, id);
CREATE INDEX online_status_seen ON admin_user_online_status (is_online, last_seen DESC);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('journal',50);
COMMIT;
PRAGMA application_id = 1886745448;
PRAGMA user_version = 1;
