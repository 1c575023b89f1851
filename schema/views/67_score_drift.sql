-- Do the scores of a finding move?
-- One row per day, bundle, station, age band and finding; the days are UTC and of the end of the work.
-- Results of bundles on trial count for their bundle.
-- tenth_1 counts films with a probability below 0.1, tenth_10 those of 0.9 and more.
CREATE VIEW score_drift AS
SELECT
    counted.day AS day,
    bundle.name || ':' || bundle.version AS bundle,
    counted.station AS station,
    counted.age_band AS age_band,
    counted.finding AS finding,
    counted.films AS films,
    counted.positive_films AS positive_films,
    counted.probability_sum / counted.films AS mean_probability,
    counted.probability_squares / counted.films
    - (counted.probability_sum / counted.films) * (counted.probability_sum / counted.films) AS variance,
    counted.spread_sum / counted.films AS mean_spread,
    counted.tenth_1 AS tenth_1,
    counted.tenth_2 AS tenth_2,
    counted.tenth_3 AS tenth_3,
    counted.tenth_4 AS tenth_4,
    counted.tenth_5 AS tenth_5,
    counted.tenth_6 AS tenth_6,
    counted.tenth_7 AS tenth_7,
    counted.tenth_8 AS tenth_8,
    counted.tenth_9 AS tenth_9,
    counted.tenth_10 AS tenth_10
FROM (
    SELECT
        daily_finding.day,
        daily_finding.bundle_id,
        daily_finding.station,
        daily_finding.age_band,
        daily_finding.finding,
        daily_finding.films,
        daily_finding.positive_films,
        daily_finding.probability_sum,
        daily_finding.probability_squares,
        daily_finding.spread_sum,
        daily_finding.tenth_1,
        daily_finding.tenth_2,
        daily_finding.tenth_3,
        daily_finding.tenth_4,
        daily_finding.tenth_5,
        daily_finding.tenth_6,
        daily_finding.tenth_7,
        daily_finding.tenth_8,
        daily_finding.tenth_9,
        daily_finding.tenth_10
    FROM daily_finding
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_finding.day)
    UNION ALL
    SELECT
        open_day_finding.day,
        open_day_finding.bundle_id,
        open_day_finding.station,
        open_day_finding.age_band,
        open_day_finding.finding,
        open_day_finding.films,
        open_day_finding.positive_films,
        open_day_finding.probability_sum,
        open_day_finding.probability_squares,
        open_day_finding.spread_sum,
        open_day_finding.tenth_1,
        open_day_finding.tenth_2,
        open_day_finding.tenth_3,
        open_day_finding.tenth_4,
        open_day_finding.tenth_5,
        open_day_finding.tenth_6,
        open_day_finding.tenth_7,
        open_day_finding.tenth_8,
        open_day_finding.tenth_9,
        open_day_finding.tenth_10
    FROM open_day_finding
) AS counted
JOIN bundle ON bundle.id = counted.bundle_id
