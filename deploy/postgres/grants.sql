-- What each role may do in the tables. Run as carina_owner after every `carina db upgrade`:
--
--     psql -v ON_ERROR_STOP=1 -U carina_owner -f deploy/postgres/grants.sql carina
--
--   carina_worker     carina worker, retry, conflicts accept,  processes films, writes results,
--                     rebuild, bundle, engine, deliver         learns from both, sends results out
--                     labels, auc --update, alerts             records labels, tracks performance, alerts
--   carina_intake     carina submit, watch, listen             registers files, sees no results
--   carina_report     dashboards and statistics                results and views, no identity
--   carina_read_only  carina status, failed, serve; pg_dump    everything, identity too
BEGIN;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, carina_worker, carina_intake, carina_report, carina_read_only;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM PUBLIC, carina_worker, carina_intake, carina_report, carina_read_only;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO carina_worker, carina_intake, carina_report, carina_read_only;

-- Worker: reads all; results are written once and never changed.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO carina_worker;
GRANT INSERT, UPDATE ON
    job, lease, worker, duty, arrival, instance, bundle_alias, rebuild, delivery, delivery_destination, alert
    TO carina_worker;
GRANT INSERT ON
    attempt, segmentation, region_measurement, failure_flag, finding_score, heatmap, bundle, engine, label,
    audit_event
    TO carina_worker;
-- What is tracked is computed anew when labels come late.
GRANT INSERT, DELETE ON auc_tracking, dice_tracking, auc_comparison TO carina_worker;
GRANT INSERT ON label_map, region_dice, tracking_run TO carina_worker;
GRANT DELETE ON lease, bundle_alias TO carina_worker;
-- Days are counted anew whenever one of their jobs changes.
GRANT INSERT, DELETE ON
    daily_open, daily_lane, daily_film, daily_flag, daily_finding, daily_region, daily_input, daily_view
    TO carina_worker;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO carina_worker;

-- Intake: what came, what it calls itself, and the work on it.
GRANT SELECT ON
    alembic_version, submission, arrival, submission_arrival, instance, identity, instance_identity, job, bundle,
    bundle_alias, worker, duty
    TO carina_intake;
GRANT INSERT, UPDATE ON submission, arrival, instance, identity, instance_identity, job TO carina_intake;
GRANT INSERT ON submission_arrival, daily_open TO carina_intake;
GRANT USAGE ON SEQUENCE submission_id_seq, arrival_id_seq, instance_id_seq, job_id_seq TO carina_intake;
-- Whether a received film is still needed: not what a reader said of it, nor what is sent where.
GRANT SELECT (instance_id) ON label TO carina_intake;
GRANT SELECT (job_id, state) ON delivery TO carina_intake;
GRANT SELECT (removed_at, filled_until) ON delivery_destination TO carina_intake;

-- Report: everything but identity (UIDs, record numbers, paths, also those of rebuilds) and the audit trail.
GRANT SELECT ON
    alembic_version, submission, arrival, submission_arrival, instance, job, lease, attempt, worker, bundle,
    bundle_alias, engine, duty, segmentation, region_measurement, failure_flag, finding_score, heatmap, label,
    label_map, region_dice, auc_tracking, dice_tracking, auc_comparison, tracking_run,
    delivery, delivery_destination, alert, daily_open, daily_lane, daily_film, daily_flag, daily_finding, daily_region,
    daily_input, daily_view
    TO carina_report;
GRANT SELECT ON
    film_state, published_result, overnight_summary, turnaround, backlog, dead_letters, flag_rates, finding_rates,
    film_drift, flag_drift, score_drift, area_drift, input_drift, view_drift, delivery_backlog, latest_auc, latest_dice,
    open_day_result, open_day_lane, open_day_film, open_day_flag, open_day_finding, open_day_region, open_day_input,
    open_day_view
    TO carina_report;

-- Read-only: for those who may see identity, and for pg_dump, which reads the sequences too.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO carina_read_only;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO carina_read_only;

COMMIT;
