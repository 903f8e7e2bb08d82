export default defineComponent({
  async run({ steps, $ }) {
    const names = ["Luke", "Han", "Leia", "Obi Wan"];
    names.forEach((name) => {
      $.send.http({
        method: "POST",
        url: "https://receiver.test/jedi",
        data: {
          name,
        },
      });
    });
  },
});
