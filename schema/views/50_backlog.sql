-- What is still to be done, and since when?
-- One row per lane and state of open work; films and files to verify together, shadow jobs left out.
CREATE VIEW backlog AS
SELECT
    CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane,
    job.state AS state,
    COUNT(*) AS films,
    MIN(job.created_at) AS oldest_created_at
FROM job
WHERE job.state IN ('ready', 'leased', 'delayed') AND job.kind <> 'shadow'
GROUP BY CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END, job.state
