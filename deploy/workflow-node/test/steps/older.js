export default async (event, steps) => {
  const names = ["Luke", "Han", "Leia", "Obi Wan"];
  names.forEach((name) => {
    $send.http({
      method: "POST",
      url: "https://receiver.test/jedi",
      data: {
        name,
      },
    });
  });
};
