#!/bin/sh
# Run once by the postgres image, when its data folder is empty: makes the roles and the
# database, and gives each role the password of its secret.
set -eu
psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d postgres -f /etc/carina/roles.sql
for role in owner worker intake report read_only; do
    # \set with backquotes keeps the password out of the process list.
    psql -v ON_ERROR_STOP=1 -q -U "$POSTGRES_USER" -d postgres <<EOF
\set password \`cat /run/secrets/postgres_$role\`
ALTER ROLE carina_$role PASSWORD :'password';
EOF
done
