-- How many results are there, and how many of them have flags or were repaired?
-- One row per day, bundle, station and age band; the days are UTC and of the end of the work.
-- Results of bundles on trial count for their bundle.
CREATE VIEW film_drift AS
SELECT
    counted.day AS day,
    bundle.name || ':' || bundle.version AS bundle,
    counted.station AS station,
    counted.age_band AS age_band,
    counted.films AS films,
    counted.flagged_films AS flagged_films,
    counted.repaired_films AS repaired_films,
    counted.repaired_pixels AS repaired_pixels
FROM (
    SELECT
        daily_film.day,
        daily_film.bundle_id,
        daily_film.station,
        daily_film.age_band,
        daily_film.films,
        daily_film.flagged_films,
        daily_film.repaired_films,
        daily_film.repaired_pixels
    FROM daily_film
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_film.day)
    UNION ALL
    SELECT
        open_day_film.day,
        open_day_film.bundle_id,
        open_day_film.station,
        open_day_film.age_band,
        open_day_film.films,
        open_day_film.flagged_films,
        open_day_film.repaired_films,
        open_day_film.repaired_pixels
    FROM open_day_film
) AS counted
JOIN bundle ON bundle.id = counted.bundle_id
