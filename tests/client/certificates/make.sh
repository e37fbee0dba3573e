#!/bin/sh
# Makes the certificates of the tests: a root, and a server and a client signed by it.
set -eu
cd "$(dirname "$0")"
openssl ecparam -name prime256v1 -genkey -noout -out root.key
openssl req -x509 -new -key root.key -days 36500 -subj "/CN=shoal test root" -out root.pem
for name in server client; do
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$name.key"
    echo "subjectAltName = DNS:$name.shoal.test" >extensions
    openssl req -new -key "$name.key" -subj "/CN=$name.shoal.test" |
        openssl x509 -req -CA root.pem -CAkey root.key -CAcreateserial -days 36500 \
            -extfile extensions -out "$name.pem"
done
rm -f root.key root.srl extensions
