-- How often is each finding positive?
-- One row per bundle and finding; shadow jobs count for their bundle.
CREATE VIEW finding_rates AS
SELECT
    bundle.name || ':' || bundle.version AS bundle,
    counted.finding AS finding,
    CAST(SUM(counted.films) AS BIGINT) AS films,
    CAST(SUM(counted.positive_films) AS BIGINT) AS positive_films,
    CAST(SUM(counted.positive_films) AS FLOAT) / SUM(counted.films) AS rate,
    SUM(counted.probability_sum) / SUM(counted.films) AS mean_probability,
    SUM(counted.spread_sum) / SUM(counted.films) AS mean_spread
FROM (
    SELECT
        daily_finding.bundle_id,
        daily_finding.finding,
        daily_finding.films,
        daily_finding.positive_films,
        daily_finding.probability_sum,
        daily_finding.spread_sum
    FROM daily_finding
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_finding.day)
    UNION ALL
    SELECT
        open_day_finding.bundle_id,
        open_day_finding.finding,
        open_day_finding.films,
        open_day_finding.positive_films,
        open_day_finding.probability_sum,
        open_day_finding.spread_sum
    FROM open_day_finding
) AS counted
JOIN bundle ON bundle.id = counted.bundle_id
GROUP BY bundle.name, bundle.version, counted.finding
