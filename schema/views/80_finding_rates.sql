-- How often is each finding positive?
-- One row per bundle and finding; shadow jobs count for their bundle.
CREATE VIEW finding_rates AS
SELECT
    bundle.name || ':' || bundle.version AS bundle,
    finding_score.finding AS finding,
    COUNT(*) AS films,
    SUM(CASE WHEN finding_score.positive THEN 1 ELSE 0 END) AS positive_films,
    AVG(CASE WHEN finding_score.positive THEN 1.0 ELSE 0.0 END) AS rate,
    AVG(finding_score.probability) AS mean_probability,
    AVG(finding_score.spread) AS mean_spread
FROM finding_score
JOIN job ON job.id = finding_score.job_id
JOIN bundle ON bundle.id = job.bundle_id
WHERE job.kind <> 'verify' AND job.state = 'done'
GROUP BY bundle.name, bundle.version, finding_score.finding
