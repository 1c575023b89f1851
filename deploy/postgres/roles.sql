-- Who may log in: one role for each kind of process. Run once, as a superuser, before the first
-- `carina db upgrade`; run again it changes nothing:
--
--     psql -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql postgres
--
-- It sets no passwords: do that with \password in psql, for each role. What each role may do in
-- the tables is in grants.sql. The database is called carina; -v database=NAME names it otherwise.
\if :{?database} \else
\set database carina
\endif

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['carina_owner', 'carina_worker', 'carina_intake', 'carina_report', 'carina_read_only']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
    END LOOP;
END
$$;

SELECT format('CREATE DATABASE %I OWNER carina_owner ENCODING ''UTF8'' TEMPLATE template0', :'database')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec

-- For solid state disks. With the default of 4, made for turning ones, questions about one night read whole tables.
ALTER DATABASE :"database" SET random_page_cost = 1.1;
-- PostgreSQL overrates how many films a day has and would compile questions about it, which takes longer than they do.
ALTER DATABASE :"database" SET jit = off;

REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO carina_worker, carina_intake, carina_report, carina_read_only;

-- A long or forgotten query keeps vacuum from removing dead rows, and that slows every claim.
ALTER ROLE carina_report SET statement_timeout = '5min';
ALTER ROLE carina_report SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE carina_report SET default_transaction_read_only = on;
ALTER ROLE carina_read_only SET statement_timeout = '30min';
ALTER ROLE carina_read_only SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE carina_read_only SET default_transaction_read_only = on;
