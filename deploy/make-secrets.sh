#!/bin/sh
# Make the secrets that docker-compose.yml mounts: deploy/make-secrets.sh [FOLDER]
# What is there already is kept, so it can be run again. As root it also sets the owners that the
# containers need; otherwise it says which ones to set.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/secrets}
mkdir -p "$folder"
cd "$folder"

random() {
    od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'
}

for role in superuser owner worker intake report read_only; do
    [ -s "postgres_$role" ] || random >"postgres_$role"
done
for role in owner worker intake read_only; do
    [ -s "database_url_$role" ] ||
        echo "postgresql+psycopg://carina_$role:$(cat "postgres_$role")@postgres/carina" >"database_url_$role"
done
if [ ! -s broker_url ] || [ ! -s redis_acl ]; then
    password=$(random)
    echo "redis://carina:$password@redis:6379/0" >broker_url
    digest=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
    sed "s/@PASSWORD_SHA256@/$digest/" "$here/redis/users.acl.template" >redis_acl
fi
[ -s serve_token ] || random >serve_token
[ -s webhook_secret ] || random >webhook_secret
# Alerts are sent to the address you put here; empty sends none.
[ -e webhook_url ] || : >webhook_url
[ -s site.key ] || { random && echo; } >site.key

if [ "$(id -u)" = 0 ]; then
    chown 10001:10001 site.key database_url_* broker_url serve_token webhook_*
    chown 999:999 postgres_* redis_acl
    chmod 0400 ./*
    # Whoever runs docker compose needs no right to read them: the daemon mounts them.
    chmod 0711 .
else
    echo "As root: chown 10001 site.key database_url_* broker_url serve_token webhook_*; chown 999 postgres_* redis_acl" >&2
fi
echo "Secrets are in $folder. Back up site.key: without it no film is recognised when it comes again."
