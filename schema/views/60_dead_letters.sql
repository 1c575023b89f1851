-- Which films failed, where and why?
-- One row per failed job, shadow jobs left out, without identity: carina failed adds file and UID
-- for those who may see them.
CREATE VIEW dead_letters AS
SELECT
    job.id AS job_id,
    instance.key AS instance_key,
    CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane,
    job.kind AS kind,
    job.code AS code,
    job.stage AS stage,
    job.detail AS detail,
    job.attempts AS attempts,
    job.crashes AS crashes,
    bundle.name || ':' || bundle.version AS bundle,
    job.created_at AS created_at,
    job.finished_at AS finished_at
FROM job
JOIN instance ON instance.id = job.instance_id
LEFT JOIN bundle ON bundle.id = job.bundle_id
WHERE job.state = 'failed' AND job.kind <> 'shadow'
