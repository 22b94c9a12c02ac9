import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.CursorRegistry;
import de.bwaldvogel.mongo.backend.Index;
import de.bwaldvogel.mongo.backend.IndexKey;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import de.bwaldvogel.mongo.backend.memory.MemoryDatabase;
import de.bwaldvogel.mongo.backend.memory.index.MemoryUniqueIndex;
import de.bwaldvogel.mongo.bson.Document;
import java.util.List;

/**
 * mongo-java-server on a port of 127.0.0.1: MongoDB's wire protocol in memory, compiled code that is not ours.
 *
 * <p>It says that it is version 4.4, the oldest that pushd's driver speaks with; and it looks a document up in a unique
 * index also when the filter says more than the index's fields, as MongoDB does: the library reads all documents then.
 */
public final class MongoJava {
    public static void main(String[] arguments) {
        MemoryBackend backend = new Backend();
        backend.version(new OldestSpokenWith());
        new MongoServer(backend).bind("127.0.0.1", Integer.parseInt(arguments[0]));
    }

    private static final class OldestSpokenWith implements MongoVersion {
        @Override
        public List<Integer> getVersionArray() {
            return List.of(4, 4, 0);
        }

        @Override
        public int getWireVersion() {
            return 9;
        }
    }

    private static final class Backend extends MemoryBackend {
        @Override
        public MemoryDatabase openOrCreateDatabase(String name) {
            return new Database(name, getCursorRegistry());
        }
    }

    private static final class Database extends MemoryDatabase {
        Database(String name, CursorRegistry cursors) {
            super(name, cursors);
        }

        @Override
        protected Index<Integer> openOrCreateUniqueIndex(
                String collection, String name, List<IndexKey> keys, boolean isSparse) {
            return new UniqueIndex(name, keys, isSparse);
        }
    }

    private static final class UniqueIndex extends MemoryUniqueIndex {
        UniqueIndex(String name, List<IndexKey> keys, boolean isSparse) {
            super(name, keys, isSparse);
        }

        @Override
        public synchronized boolean canHandle(Document query) {
            Document known = new Document();
            for (String key : keys()) {
                if (query.containsKey(key)) {
                    known.put(key, query.get(key));
                }
            }
            return super.canHandle(known);
        }
    }
}
