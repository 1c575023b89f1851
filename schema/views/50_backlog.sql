-- What is still to be done, and since when?
-- One row per lane and state of open work; films and files to verify together, shadow jobs left out.
-- Each state is asked for as its own index has it, so that finished films cost nothing.
CREATE VIEW backlog AS
SELECT
    unfinished.lane AS lane,
    unfinished.state AS state,
    COUNT(*) AS films,
    MIN(unfinished.created_at) AS oldest_created_at
FROM (
    SELECT CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane, job.state AS state, job.created_at
    FROM job
    WHERE job.state = 'ready' AND job.kind <> 'shadow'
    UNION ALL
    SELECT CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane, job.state AS state, job.created_at
    FROM job
    WHERE job.lease_id IS NOT NULL AND job.kind <> 'shadow'
    UNION ALL
    SELECT CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane, job.state AS state, job.created_at
    FROM job
    WHERE job.state = 'delayed' AND job.kind <> 'shadow'
) AS unfinished
GROUP BY unfinished.lane, unfinished.state
