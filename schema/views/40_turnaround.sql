-- How long from a film's registration to its result?
-- One row per day (UTC, when the result was written) and lane; seconds. Half of the films
-- were ready within the median, 95 of 100 within percentile_95.
CREATE VIEW turnaround AS
SELECT
    counted.day AS day,
    counted.lane AS lane,
    counted.timed AS films,
    counted.timed_mean_wait_seconds AS mean_wait_seconds,
    counted.timed_mean_run_seconds AS mean_run_seconds,
    counted.mean_seconds AS mean_seconds,
    counted.median_seconds AS median_seconds,
    counted.percentile_95_seconds AS percentile_95_seconds,
    counted.longest_seconds AS longest_seconds
FROM (
    SELECT
        daily_lane.day,
        daily_lane.lane,
        daily_lane.timed,
        daily_lane.timed_mean_wait_seconds,
        daily_lane.timed_mean_run_seconds,
        daily_lane.mean_seconds,
        daily_lane.median_seconds,
        daily_lane.percentile_95_seconds,
        daily_lane.longest_seconds
    FROM daily_lane
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_lane.day)
    UNION ALL
    SELECT
        open_day_lane.day,
        open_day_lane.lane,
        open_day_lane.timed,
        open_day_lane.timed_mean_wait_seconds,
        open_day_lane.timed_mean_run_seconds,
        open_day_lane.mean_seconds,
        open_day_lane.median_seconds,
        open_day_lane.percentile_95_seconds,
        open_day_lane.longest_seconds
    FROM open_day_lane
) AS counted
WHERE counted.timed > 0
