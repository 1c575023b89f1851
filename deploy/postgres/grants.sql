-- What each role may do in the tables. Run as carina_owner after every `carina db upgrade`:
--
--     psql -v ON_ERROR_STOP=1 -U carina_owner -f deploy/postgres/grants.sql carina
--
--   carina_worker     carina worker, retry, conflicts accept,  processes films, writes results,
--                     rebuild, bundle, engine                  learns from both
--   carina_intake     carina submit, watch                     registers files, sees no results
--   carina_report     dashboards and statistics                results and views, no identity
--   carina_read_only  carina status, failed, export; pg_dump   everything, identity too
BEGIN;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, carina_worker, carina_intake, carina_report, carina_read_only;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, carina_worker, carina_intake, carina_report, carina_read_only;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO carina_worker, carina_intake, carina_report, carina_read_only;

-- Worker: reads all; results are written once and never changed.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO carina_worker;
GRANT INSERT, UPDATE ON job, lease, worker, duty, arrival, instance, bundle_alias, rebuild TO carina_worker;
GRANT INSERT ON
    attempt, segmentation, region_measurement, failure_flag, finding_score, heatmap, bundle, engine, label,
    audit_event
    TO carina_worker;
GRANT DELETE ON lease, bundle_alias TO carina_worker;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO carina_worker;

-- Intake: what came, what it calls itself, and the work on it.
GRANT SELECT ON
    alembic_version, submission, arrival, submission_arrival, instance, identity, instance_identity, job, bundle,
    bundle_alias, worker, duty
    TO carina_intake;
GRANT INSERT, UPDATE ON submission, arrival, instance, identity, instance_identity, job TO carina_intake;
GRANT INSERT ON submission_arrival TO carina_intake;
GRANT USAGE ON SEQUENCE submission_id_seq, arrival_id_seq, instance_id_seq, job_id_seq TO carina_intake;

-- Report: everything but identity (UIDs, record numbers, paths, also those of rebuilds) and the audit trail.
GRANT SELECT ON
    alembic_version, submission, arrival, submission_arrival, instance, job, lease, attempt, worker, bundle,
    bundle_alias, engine, duty, segmentation, region_measurement, failure_flag, finding_score, heatmap, label
    TO carina_report;
GRANT SELECT ON
    film_state, published_result, overnight_summary, turnaround, backlog, dead_letters, flag_rates, finding_rates
    TO carina_report;

-- Read-only: for those who may see identity, and for pg_dump, which reads the sequences too.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO carina_read_only;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO carina_read_only;

COMMIT;
