export default defineComponent({
  async run({ steps, $ }) {
    const names = ["Luke", "Han", "Leia", "Obi Wan"];
    for (const name of names) {
      $.send.http({
        method: "POST",
        url: "https://receiver.test/jedi",
        data: {
          name,
        },
      });
    }
  },
});
