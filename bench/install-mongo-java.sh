#!/usr/bin/env bash
# The MongoDB that `python bench/stores.py` measures with where there is no mongod: mongo-java-server, from Maven Central
# into build/mongo-java, in a fixed version (bench/mongo_java/pom.xml). Where it cannot be had the tests' stand-in serves.
set -euo pipefail
cd "$(dirname "$0")/.."
SOURCE=bench/mongo_java PLACE=build/mongo-java

for program in java javac mvn; do
  if ! command -v "$program" >/dev/null; then
    echo "mongo-java-server cannot be used: $program is not installed" >&2
    exit 0
  fi
done
if [ "$PLACE/ready" -nt "$SOURCE/pom.xml" ] && [ "$PLACE/ready" -nt "$SOURCE/MongoJava.java" ]; then exit 0; fi

rm -rf "$PLACE"
mkdir -p "$PLACE"
mvn --quiet --batch-mode -Dstyle.color=never --file "$SOURCE/pom.xml" \
  org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies "-DoutputDirectory=$PWD/$PLACE" >&2 &&
  javac -cp "$PLACE/*" -d "$PLACE" "$SOURCE/MongoJava.java" &&
  touch "$PLACE/ready" ||
  echo "mongo-java-server cannot be used: it cannot be had from Maven Central, or does not compile" >&2
